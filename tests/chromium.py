"""Chromium and its start in tests."""

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
# The camera shows a test pattern and needs no permission.
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

# Milliseconds, far more than a page takes on a busy machine.
TIMEOUT = 300_000

# A page that the server has finished drawing.
SETTLED = "[data-testid=stApp][data-test-script-state=notRunning]"
