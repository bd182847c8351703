"""Thaw's home page: what Thaw does, what the machine can do, and a first model in one click."""

from pages.shared.chrome import start_page


def main() -> None:
    """Draw the page, its title first."""
    start_page(
        "app.py",
        "Thaw fine-tunes pretrained image classifiers on your own images, in the browser. It shows "
        "which layers are worth training: freeze the others, and compare.",
    )
    # This imports torch, which takes seconds on a new server. The title is on the screen before.
    from pages.shared.home import draw_home

    draw_home()


main()
