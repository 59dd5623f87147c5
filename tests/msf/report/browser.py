"""A headless Chromium on the two ends of a pipe, by its DevTools protocol; what it logs and asks for is kept.

The protocol over a pipe needs nothing but Chromium itself: no driver of its version, no port, no further package.
"""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_READ_END, _WRITE_END = 3, 4  # where Chromium looks for them
_SECONDS = 60
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--hide-scrollbars",
)  # fmt: skip


def find_chromium():
    """Return the path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a Chromium of its own.

    Attributes:
        events: What the browser told without being asked, in order.
    """

    def __init__(self, chromium, folder):
        child_reads, self._writing = os.pipe()
        self._reading, child_writes = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_reads, child_writes)]

        def connect():
            os.dup2(ends[0], _READ_END)
            os.dup2(ends[1], _WRITE_END)

        self._process = subprocess.Popen(
            [chromium, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=connect,
            pass_fds=(_READ_END, _WRITE_END),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (child_reads, child_writes, *ends):
            os.close(end)
        self._numbers, self._received, self._session = itertools.count(1), b"", None
        self.events = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(_SECONDS)
        os.close(self._reading)
        os.close(self._writing)

    def ask(self, method, **parameters):
        """Send a command; return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, url, *, width, height, scheme):
        """Show a page in a window of so many pixels, by day (`light`) or by night (`dark`)."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.look(scheme)
        del self.events[:]
        self.ask("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def look(self, scheme, medium=""):
        """Change between day and night, screen and paper."""
        # Without smooth scrolling, so that a page stands still when it is pressed.
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.ask("Emulation.setEmulatedMedia", media=medium, features=features)

    def run(self, script):
        """Return the value of a JavaScript expression."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, element):
        """Press the mouse in the middle of what a JavaScript expression finds."""
        x, y = self.run(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const r = e.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def of(self, *methods):
        """Return the parameters of events of these kinds."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def _next(self):
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._received:
            if not select.select([self._reading], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium did not answer within {_SECONDS} s")
            part = os.read(self._reading, 1 << 16)
            if not part:
                raise RuntimeError(f"Chromium ended with {self._process.poll()}")
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)
