"""Reports in a real browser: on a telephone and a screen, in the light and in the dark."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from thaw.search import report
from thaw.search.ledger import Row

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
MOST_BYTES = 3 * 10**6
LOOK = """() => ({
    page: document.documentElement.scrollWidth - window.innerWidth,
    unnamed: [...document.querySelectorAll('svg, img, canvas, object')].filter(
        picture => !(picture.getAttribute('aria-label') || picture.getAttribute('alt'))).length,
    pictures: document.querySelectorAll('svg[role=img], img').length,
    paper: getComputedStyle(document.body).backgroundColor,
    empty: [...document.querySelectorAll('svg')].filter(picture => picture.getBoundingClientRect().height < 40).length,
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def assert_presentable(browser: Any, path: Path, pictures: int) -> None:
    """At 390 and 1,280 pixels, light and dark: it fetches nothing, fits, and every picture has a name."""
    assert path.stat().st_size < MOST_BYTES
    papers = set()
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(path.resolve().as_uri())
            seen = page.evaluate(LOOK)
            page.close()
            where = f"{width} pixels, {scheme}"
            assert said == [], where
            assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()], where
            assert seen["page"] <= 0, f"the page is {seen['page']} pixels too wide at {where}"
            assert (seen["unnamed"], seen["empty"]) == (0, 0), where
            assert seen["pictures"] >= pictures, where
            papers.add((scheme, seen["paper"]))
    assert len({paper for _, paper in papers}) == 2  # one for light, one for dark


@pytest.mark.medium
def test_the_report_of_a_run_is_presentable(run_train, reports, browser) -> None:
    quick = ("trainer.max_epochs=3", "data.train_size=60", "freezing.every=1", "logger=none")
    outcome = run_train(*quick, "optimizer.lr=1e-3")
    assert outcome.code == 0, outcome.errors
    assert_presentable(browser, outcome.folders[-1] / "report.html", pictures=5)


@pytest.mark.medium
def test_the_report_of_a_sweep_is_presentable(browser, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    space = {
        "optimizer.lr": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True),
        "freezing": optuna.distributions.CategoricalDistribution(["none", "a-strategy-with-a-long-name"]),
        "model.dropout": optuna.distributions.FloatDistribution(0, 0.5),
    }
    rows = []
    for number in range(12):
        params = {"optimizer.lr": 10 ** -(2 + number / 4), "freezing": space["freezing"].choices[number % 2]}
        params |= {"model.dropout": number / 24}
        value = 0.9 - 0.01 * abs(number - 5)
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=value))
        settings = {key: str(held) for key, held in params.items()}
        command = [f"{key}={held}" for key, held in settings.items()]
        status, reason = ("failed", "RuntimeError: " + "long " * 30) if number == 11 else ("finished", "")
        metrics = {"val/accuracy": value, "val/loss": 1 - value}
        history = [value * epoch / 5 for epoch in range(1, 6)]
        told = (settings, "0", status, reason, "val/accuracy", "max", value, metrics, history, 5, 4, 9.0, command)
        rows.append(Row(tmp_path / f"{number:016x}", *told))
    report.write(tmp_path, rows, study, "a-sweep", {"optimizer.lr": "0.01"})
    assert_presentable(browser, tmp_path / "report.html", pictures=5)
