#!/usr/bin/env python3
"""The report page in headless Chromium, at 390 and 1,440 pixels, light and dark: prints one JSON line per view.

    ci/look.py PAGE.html|URL [--to DIR]

What must hold in each view: nothing on the console, no request besides the page itself (of a URL: to another server),
every plot inside the screen's width with marks that can be seen, no text smaller than 9 pixels in a plot, no sideways
scrolling of the page; with a mouse, values where it points. Screenshots go to DIR (the page's folder): look at them.

Needs python3; Chromium is installed with apt where it is not yet. It speaks the DevTools protocol over a pipe, so
nothing else is needed.
"""

import argparse
import base64
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

VIEWS = [(390, 844, "light"), (390, 844, "dark"), (1440, 900, "light"), (1440, 900, "dark")]

# Boxes of plots and of what is drawn in them, in the page's pixels.
LOOK = r"""
(() => {
  const box = (e) => { const r = e.getBoundingClientRect(); return [r.left + scrollX, r.top + scrollY, r.width, r.height]; };
  const plots = [...document.querySelectorAll("figure.plot")].map((figure) => {
    const svg = figure.querySelector("svg");
    const marks = [...svg.querySelectorAll(".line, .bar")];
    const inked = marks.filter((m) => { const [, , w, h] = box(m); return w > 0.5 && h >= 0 && getComputedStyle(m).visibility === "visible"; });
    const texts = [...svg.querySelectorAll(":scope > text")];
    const size = texts.length ? Math.min(...texts.map((t) => t.getBoundingClientRect().height)) : 99;
    return { name: svg.getAttribute("aria-label"), box: box(figure), inked: inked.length, marks: marks.length, text: size };
  });
  const dag = [...document.querySelectorAll(".dag svg")].filter((s) => s.getBoundingClientRect().width > 0);
  return { plots, width: document.documentElement.scrollWidth, inner: innerWidth, dag: dag.length, height: document.documentElement.scrollHeight,
           step: [...document.querySelectorAll(".plot .rule")].length, background: getComputedStyle(document.body).backgroundColor };
})()
"""


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    for command in (["apt-get", "update"], install):
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if found := shutil.which("chromium"):
        return found
    raise SystemExit(f"no browser, and none can be installed: {ended.stderr.strip()[-300:]}")


class Browser:
    """Chromium over a pair of pipes: JSON messages, each closed by a zero byte."""

    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory(prefix="look-")
        to_read, self.to = os.pipe()
        self.back, back_write = os.pipe()
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&%d 4>&%d' % (to_read, back_write), "sh", program, "--headless=new", "--no-sandbox",
             "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe", "--disable-dev-shm-usage",
             f"--user-data-dir={self.folder.name}", "about:blank"],
            pass_fds=(to_read, back_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(back_write)
        self.numbers, self.events, self.rest = itertools.count(1), [], b""

    def message(self):
        while b"\0" not in self.rest:
            part = os.read(self.back, 1 << 16)
            if not part:
                raise SystemExit("the browser ended")
            self.rest += part
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, session=None, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            got = self.message()
            if got.get("id") == number:
                if "error" in got:
                    raise SystemExit(f"{method}: {got['error']}")
                return got["result"]
            self.events.append(got)

    def wait(self, method):
        for i, event in enumerate(self.events):
            if event.get("method") == method:
                return self.events.pop(i)
        while True:
            got = self.message()
            if got.get("method") == method:
                return got
            self.events.append(got)

    def open(self, url, width, height, scheme):
        """A page of its own; what came over the console and the network so far is in `events`."""
        self.events.clear()
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", session)
        self.call("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 700)
        self.call("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", session, url=url)
        self.wait("Page.loadEventFired")
        return session

    def evaluate(self, session, script):
        result = self.call("Runtime.evaluate", session, expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"in the page: {result['exceptionDetails']}")
        return result["result"].get("value")

    def shoot(self, session, path, width, height):
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)
        pathlib.Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait()


def faults(browser, url):
    """What the console said, and what was asked of the network besides the page."""
    said, asked = [], []
    for event in browser.events:
        params = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled":
            said.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            said.append(params["exceptionDetails"].get("text", "exception"))
        elif event.get("method") == "Log.entryAdded":
            said.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            wanted = params["request"]["url"]
            served = url.startswith("http") and wanted.startswith(url.split("/runs/")[0] + "/")
            if wanted != url and not wanted.startswith("data:") and not served:
                asked.append(wanted)
    return said, asked


def point(browser, session, plots):
    """What a plot says where the mouse is: in the middle of the first."""
    x, y, width, height = plots[0]["box"]
    browser.evaluate(session, f"scrollTo(0, {y - 100})")
    top = browser.evaluate(session, "scrollY")
    browser.call("Input.dispatchMouseEvent", session, type="mouseMoved", x=x + width / 2, y=y - top + height / 2)
    time.sleep(0.2)
    return browser.evaluate(session, """[...document.querySelectorAll(".at > g")].filter((g) =>
        getComputedStyle(g).visibility === "visible").map((g) => g.textContent).join(" | ")""")


def look(browser, url, width, height, scheme, shot):
    session = browser.open(url, width, height, scheme)
    time.sleep(0.3)
    seen = browser.evaluate(session, LOOK)
    browser.shoot(session, shot, width, min(seen["height"], 16000))
    said, asked = faults(browser, url)
    plots = seen["plots"]
    pointed = point(browser, session, plots) if width >= 700 and seen["step"] else None
    outside = [p["name"] for p in plots if p["box"][0] < 0 or p["box"][0] + p["box"][2] > width + 0.5]
    empty = [p["name"] for p in plots if p["inked"] == 0 or p["inked"] < p["marks"] / 2]
    small = [p["name"] for p in plots if p["text"] < 9 or p["box"][3] < 120]
    view = {"width": width, "scheme": scheme, "plots": len(plots), "dag": seen["dag"], "console": said, "requests": asked,
            "outside": outside, "empty": empty, "small": small, "page_width": seen["width"], "page_height": seen["height"],
            "background": seen["background"], "screenshot": str(shot)}
    if pointed is not None:
        view["pointed"] = pointed
    view["ok"] = not (said or asked or outside or empty or small) and plots and seen["dag"] == 1 and seen["width"] <= width and pointed != ""
    view["ok"] = bool(view["ok"])
    print(json.dumps(view), flush=True)
    return view


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page")
    parser.add_argument("--to", type=pathlib.Path)
    args = parser.parse_args()
    served = args.page.startswith("http")
    file = pathlib.Path("live.html" if served else args.page)
    to = args.to or file.parent
    to.mkdir(parents=True, exist_ok=True)
    browser = Browser(chromium())
    url = args.page if served else file.resolve().as_uri()
    views = [look(browser, url, w, h, scheme, to / f"{file.stem}-{w}-{scheme}.png") for w, h, scheme in VIEWS]
    browser.close()
    assert len({v["background"] for v in views}) == 2, "light and dark look alike"
    sys.exit(0 if all(v["ok"] for v in views) else 1)


if __name__ == "__main__":
    main()
