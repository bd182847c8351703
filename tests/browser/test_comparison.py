"""Comparison in a real browser: from ticked strategies to a verdict, its address, and a report."""

import re
from urllib.parse import parse_qs, urlsplit

from tests.chromium import SETTLED
from tests.deadline import wait_until


def test_strategies_and_seeds_lead_to_a_verdict_that_can_be_sent(
    server, finished_runs, page, tab, browser, tmp_path, set_number
):
    earlier = "&".join(f"runs={run_id}" for run_id in finished_runs)
    page.goto(f"{server.address('compare')}&{earlier}")
    page.get_by_text("Start a comparison").click()
    page.get_by_text("2 epochs of batches of 16").wait_for()
    for name in ("Full fine-tuning", "Linear probe"):
        page.get_by_role("button", name=name, exact=True).click()
    page.get_by_role("button", name="Start 6 runs").wait_for()
    set_number("Seeds", 2)
    start = page.get_by_role("button", name="Start 4 runs")
    start.wait_for()
    page.get_by_role("button", name="Forecast").click()
    page.get_by_text(re.compile(r"4 runs in total: about \d")).wait_for()
    start.click()
    page.wait_for_url(re.compile(r"/compare\?.*runs=.+&runs=.+&runs=.+&runs="))
    runs = parse_qs(urlsplit(page.url).query)["runs"]
    wait_until(lambda: not any(server.store.get_run(run_id).is_active for run_id in runs))
    page.locator(SETTLED).wait_for()
    page.get_by_text(re.compile(r"\d of 4 runs done")).wait_for(state="detached")
    heading = page.get_by_role("heading", name=re.compile(r"on \d+ images"))
    heading.wait_for()
    verdict = heading.inner_text().strip()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()

    with page.expect_download() as download:
        page.get_by_role("button", name="Report, one HTML file").click()
    download.value.save_as(tmp_path / "report.html")
    offline = browser.new_context(offline=True)
    report = offline.new_page()
    report.goto((tmp_path / "report.html").as_uri())
    report.get_by_text(verdict).wait_for()
    report.locator(".figure .main-svg").first.wait_for()
    offline.close()

    guest = tab()
    guest.goto(page.url)
    guest.get_by_text(verdict).wait_for()
