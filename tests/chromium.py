"""Chromium, and how tests start it."""

import os
import shutil

CHROMIUM = (
    os.environ.get("THAW_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or ""
)
# A name of another site that leads to this machine.
REBOUND = "evil.example"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
]
# The camera shows a test pattern, and may be used without being asked.
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

# Milliseconds. Far more than a page takes on a busy machine: only what never comes takes as long.
TIMEOUT = 300_000

# A page that the server has drawn to its end.
SETTLED = "[data-testid=stApp][data-test-script-state=notRunning]"
