"""A throw-away Jupyter server and a headless Chromium for the browser tests. Nothing leaves 127.0.0.1."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",  # as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",  # the microphone is allowed and hums a tone
    "--use-fake-device-for-media-stream",
]
LAB_SETTINGS = {
    # windowing takes cells that are off screen out of the page; then they cannot be found
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/themes": {"adaptive-theme": True},  # dark where the system is
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}


def require_chromium() -> None:
    """Skip aloud where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium found (Debian: apt-get install chromium); the notebooks were not seen in a browser")


def copy_notebook(name: str, folder: Path, **parameters) -> None:
    """Copy a notebook into a folder with other parameters, appended to its cell of that tag so that they win."""
    book = json.loads((ROOT / name).read_text(encoding="utf-8"))
    cell = next(c for c in book["cells"] if "parameters" in c["metadata"].get("tags", []))
    cell["source"] = [*cell["source"], *(f"\n{key} = {value!r}" for key, value in parameters.items())]
    (folder / name).write_text(json.dumps(book), encoding="utf-8")


@contextlib.contextmanager
def server(folder: Path, classic_python: str | None = None):
    """JupyterLab showing a folder, or classic Notebook run by another Python; yields its address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
        environment = os.environ | {name: str(Path(scratch, name.lower())) for name in names} | {"OMP_NUM_THREADS": "1"}
        for name, settings in LAB_SETTINGS.items():
            path = Path(environment["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", f"{name}.jupyterlab-settings")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        common = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
        if classic_python:
            command = [classic_python, "-m", "notebook", *common, f"--notebook-dir={folder}"]
            command += ["--NotebookApp.token=", "--NotebookApp.password="]
        else:
            command = [sys.executable, "-m", "jupyterlab", *common, f"--ServerApp.root_dir={folder}"]
            command += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.extension_manager=readonly"]
        with open(Path(scratch, "log"), "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            try:
                _wait_until_it_answers(f"http://127.0.0.1:{port}/api/status", process, log)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_until_it_answers(url, process, log):
    deadline = time.monotonic() + 180
    while True:
        try:
            return urllib.request.urlopen(url, timeout=1)
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(log.read()[-2000:]) from None
            time.sleep(0.1)


@contextlib.contextmanager
def browser(width=1200, height=1600, flags=()):
    """A page of a headless Chromium, with further flags of it."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            args=[*FLAGS, *flags],
            viewport={"width": width, "height": height},
        )
        context.set_default_timeout(120_000)  # a busy machine is no fault of the page
        try:
            yield context.pages[0]
        finally:
            context.close()


def watch(page, url) -> dict:
    """Collects what must stay empty: errors of the page, requests to any other host."""
    seen = {"errors": [], "outside": []}
    own = (url, url.replace("http", "ws"), "data:", "blob:", "about:")
    page.on("pageerror", lambda error: seen["errors"].append(str(error)[:200]))
    own += ("https://colab.research.google.com/assets/colab-badge.svg",)  # the badge on top of every notebook
    page.on("request", lambda r: None if r.url.startswith(own) else seen["outside"].append(r.url))
    return seen


def wait_until(tab, condition, timeout_s=60) -> None:
    """As wait_for_function, which the player's own security policy forbids (it evaluates text inside the page)."""
    deadline = time.monotonic() + timeout_s
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, condition
        tab.wait_for_timeout(50)


def open_player(tab, path: Path) -> dict:
    """Open a player's or lesson's file and wait until it can be used; gives what must stay empty, as :func:`watch`."""
    seen = watch(tab, path.as_uri())
    tab.on("console", lambda m: seen["errors"].append(m.text) if m.type in ("error", "warning") else None)
    tab.on("dialog", lambda d: seen["errors"].append(d.message))
    tab.goto(path.as_uri())
    wait_until(tab, "Boolean(window.player && window.player.ready > 0)")
    return seen


def overlapping_texts(tab, selector: str) -> list[list[str]]:
    """Pairs of texts whose boxes on the page cover each other by more than a pixel."""
    return tab.evaluate(
        """selector => {
        const found = [...document.querySelectorAll(selector)].filter(e => e.textContent.trim() && e.checkVisibility())
            .map(e => [e.textContent, e.getBoundingClientRect()]);
        return found.flatMap(([a, r], i) => found.slice(i + 1).filter(([b, s]) =>
            Math.min(r.right, s.right) - Math.max(r.left, s.left) > 1
            && Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 1).map(([b]) => [a, b])); }""",
        selector,
    )


def too_wide(page) -> list[str]:
    """Widgets that hold more than fits, which some systems show as a scroll bar, as their first words."""
    return page.evaluate(
        """[...document.querySelectorAll('.widget-box, .widget-html')].filter(e => e.checkVisibility()
        && e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX !== 'visible')
        .map(e => e.className + ': ' + e.innerText.slice(0, 40))"""
    )


def open_in_lab(page, url, name) -> None:
    """Open one notebook and wait for a kernel that is really there (the sign says idle once before there is one)."""
    page.goto(f"{url}/doc/tree/{name}")
    page.wait_for_function(
        """() => !/No Kernel|^$/.test(document.querySelector('.jp-Toolbar-kernelName')?.innerText || '')
        && document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'""",
        timeout=180000,
    )


def run_all_in_lab(page, timeout_s=180) -> None:
    """Run > Run All Cells, and wait until every cell whose code is shown has its number."""
    press_run_all_in_lab(page)
    wait_for_cells_in_lab(page, timeout_s)


def press_run_all_in_lab(page) -> None:
    """Run > Run All Cells."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def wait_for_cells_in_lab(page, timeout_s=180) -> None:
    """Wait until every cell whose code is shown has its number, or one has failed."""
    page.wait_for_function(
        """() => {
        const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
            .map(e => e.innerText.trim()).filter(text => text);
        return document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
          || (p.length && p.every(t => /^\\[\\d+\\]:?$/.test(t))); }""",
        timeout=timeout_s * 1000,
    )


def saved_with_outputs(path: Path, timeout_s=20) -> None:
    """Wait until a notebook on disk holds the outputs of its last code cell."""
    deadline = time.monotonic() + timeout_s
    while not [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"][-1]["outputs"]:
        assert time.monotonic() < deadline, f"{path.name} was not saved"
        time.sleep(0.1)


def end_kernels(page) -> None:
    """End every kernel of the server that a page shows; what is in its folder stays."""
    page.evaluate("""async () => {
        const token = document.cookie.match(/_xsrf=([^;]*)/)[1];
        for (const s of await (await fetch('/api/sessions')).json())
            await fetch('/api/sessions/' + s.id, { method: 'DELETE', headers: { 'X-XSRFToken': token } });
    }""")


def errors_in_lab(page) -> list[str]:
    """What cells wrote to stderr or raised."""
    kinds = ("stderr", "error")
    found = page.locator(", ".join(f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in kinds))
    return found.all_inner_texts()


def durations_s(page, selector="audio") -> list[float]:
    """Lengths of the players, as the browser decoded them."""
    page.wait_for_function(
        f"""() => {{ const a = [...document.querySelectorAll('{selector}')]; return a.length
        && a.every(x => x.readyState >= 1); }}""",
        timeout=30000,
    )
    return page.evaluate(f"[...document.querySelectorAll('{selector}')].map(a => a.duration)")


def whole_screenshot(page, path: Path) -> None:
    """A picture of the whole notebook, not only of what fits the window."""
    outer = ".jp-WindowedPanel-outer, #site"
    page.evaluate(f"document.querySelectorAll('{outer}').forEach(e => e.scrollTo(0, 0))")
    height = page.evaluate(
        """Math.max(...[...document.querySelectorAll('.jp-WindowedPanel-inner, #notebook-container')]
        .map(e => e.getBoundingClientRect().height))"""
    )
    size = page.viewport_size
    page.set_viewport_size({"width": size["width"], "height": min(int(height) + 150, 12000)})
    page.wait_for_timeout(300)
    page.evaluate(f"document.querySelectorAll('{outer}').forEach(e => e.scrollTo(0, 0))")
    page.screenshot(path=str(path))
    page.set_viewport_size(size)


# Times in ms since a button of the study panel was pressed: pictures, texts of the progress bar, begin and end of work.
STUDY = """() => {
    const seen = window.seen = { pictures: [], progress: [], busy: null, idle: null };
    const of = (selector, list) => new MutationObserver(() => list.push(performance.now() - window.pressed))
        .observe(document.querySelector(selector), { childList: true, subtree: true, characterData: true });
    of('.t-study-live', seen.pictures); of('.svclib-study .svclib-progress', seen.progress);
    const button = document.querySelector('button.t-study-cancel');
    new MutationObserver(() => { if (button.disabled) seen.idle = performance.now() - window.pressed;
        else seen.busy = performance.now() - window.pressed; }).observe(button, { attributes: true });
}"""


def panel_notebook(folder: Path, name: str, home: Path, module: str, shown: str) -> None:
    """A notebook of one cell that shows ``module.shown`` for a person's folder ``base``."""
    lines = f"from svclib.notebooks import {module}\nfrom svclib.utils import workspace\n"
    lines += f"base = workspace.base_folder(base={str(home)!r})\n{module}.{shown}"
    cell = {"cell_type": "code", "metadata": {}, "source": lines, "outputs": [], "execution_count": None, "id": "a"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / name).write_text(json.dumps(book))


def press(page, button: str) -> None:
    """Press a button and note when."""
    page.evaluate(f"() => {{ window.pressed = performance.now(); document.querySelector('button.{button}').click(); }}")


def set_number(page, name: str, value) -> None:
    """Fill a number box of the panel."""
    box = page.locator(f".{name} input")
    box.fill(str(value))
    box.press("Enter")


def run_study(page, timeout_s: float = 300) -> dict:
    """Press Run, wait for the end; what was seen when, in ms."""
    page.evaluate(STUDY)
    press(page, "t-study-run")
    page.wait_for_function("window.seen.busy !== null && window.seen.idle !== null", timeout=timeout_s * 1000)
    return page.evaluate("window.seen")


def cancel_study(page) -> dict:
    """Press Run and, as soon as it can be, Cancel: ms from Cancel to the word that it stops, and to a free panel."""
    page.evaluate(STUDY)
    press(page, "t-study-run")
    page.wait_for_selector("button.t-study-cancel:not([disabled])")
    press(page, "t-study-cancel")
    page.wait_for_function("document.querySelector('.svclib-study').innerText.match(/Stopping|cancelled/)", polling=10)
    said = page.evaluate("performance.now() - window.pressed")
    page.wait_for_function("document.querySelector('button.t-study-cancel').disabled", polling=10)
    free = page.evaluate("performance.now() - window.pressed")
    message = page.locator(".svclib-study .svclib-message")
    message.filter(has_text="cancelled").wait_for(timeout=3000)  # it may come a moment after the buttons
    text = message.inner_text()
    return {"said": said, "free": free, "text": text}


NAME = "<img src=x onerror=alert(1)></script><script>alert(2)</script> & \u2028 'ä'"


def data_of(document):
    return json.loads(re.search(r'id="data">(.*?)</script>', document, re.S)[1])
