"""The report page: one valid, self-contained file; and, where there is a browser, that it works in one."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from headless_browser import CHROMIUM, Browser
from outeropt.bench.leaderboard import leaderboard
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import report, report_data, report_tables
from outeropt.bench.pictures.contestants import contestants
from outeropt.errors import OuteroptError
from picture_fixtures import archive, archives


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & {{ 7 * 7 }} \u2028 $x$"
VOID = {"meta", "br", "img", "input", "link", "hr", "line"}


class Page(html.parser.HTMLParser):
    """Checks nesting and keeps what is of interest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice: {tag} {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.inside.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> dict:
        return json.loads(self.inside["script"][0], parse_constant=lambda name: pytest.fail(name))


@pytest.fixture(scope="module")
def scored():
    held = archives(optimizers=4, tasks=3, accuracy=True)
    normalizer = Normalizer.from_archives([a for a in held if a.set == "opt_0-lr"], "the-reference")
    board = leaderboard(held, normalizer, resamples=50)
    return held, board, normalizer


@pytest.fixture(scope="module")
def text(scored):
    held, board, normalizer = scored
    return report.render(held, board, title="A title", normalizer=normalizer)


def test_page_is_one_valid_file_without_requests(text):
    page = Page(text)
    assert text.startswith("<!doctype html>")
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed"), tag
        assert "src" not in attributes, (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")], "inline handlers are blocked"
    assert not re.search(r"url\(\s*['\"]?(?!#)", re.sub(r"`url\(#\$\{clip\}\)`", "", text))
    assert "@import" not in text and "http:" not in text and "https:" not in text
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'") and "'unsafe-eval'" not in policy
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_sections_and_numbers(text, scored):
    _, board, _ = scored
    page = Page(text)
    assert {s["id"] for s in page.all("section")} == {
        "ranking", "heat", "curves", "sensitivity", "profiles", "tunability", "details"
    }  # fmt: skip
    assert f"{board.rows[0].score:.2f}" in "".join(page.inside["td"])
    data = page.data
    assert data["tasks"] == ["task_0", "task_1", "task_2"]
    assert data["curves"] == ["train/loss", "valid/loss", "test/loss", "inner/loss", "test/accuracy"]
    assert len(data["entries"]) == 8 and len(data["learning"][0]) == 8
    assert len(data["profiles"]) == 8 and len(data["speedup"]) == 8


def test_curves_are_the_means_over_seeds_of_the_best_setting(scored):
    held, _, _ = scored
    charts = report_data.charts(contestants(held), ["task_0"], None, "train/loss")
    line = charts["learning"][0][0]
    entry = charts["entries"][line["entry"]]
    source = next(a for a in held if a.task == "task_0" and a.set == f"{entry['label']}-lr")
    mean = source.curves["test/loss"][source.best("valid/loss")].mean(axis=0)
    np.testing.assert_allclose(line["curves"]["test/loss"]["mid"], mean, rtol=6e-4)
    assert line["x"] == source.steps.tolist()


def test_hostile_names_stay_text(scored):
    held = [archive(HOSTILE, HOSTILE, HOSTILE), archive(HOSTILE, "adam")]
    held[0] = dataclasses.replace(held[0], details={HOSTILE: HOSTILE, "versions": {"a": [1, None]}})
    normalizer = Normalizer.from_archives(held[1:], HOSTILE)
    text = report.render(
        held, leaderboard(held, normalizer, resamples=20), title=HOSTILE, normalizer=normalizer
    )
    page = Page(text)
    assert len(page.all("script")) == 2 and not page.all("img")
    assert "{{" not in text.replace("{{ 7 * 7 }}", "") and "49" not in page.inside["h1"][0]
    assert page.inside["h1"] == [HOSTILE] and page.data["tasks"] == [HOSTILE]


@pytest.mark.parametrize(
    "held",
    [
        pytest.param([archive(settings=1, seeds=1, points=2)], id="one trial"),
        pytest.param([archive(points=1, steps=0)], id="one step"),
        pytest.param([archive(set="a"), archive(set="b")], id="two sets of one optimizer"),
        pytest.param([archive(set="adam-default", settings=1)], id="as is only"),
        pytest.param([archive(seeds=1), archive("other", "sgd")], id="tasks with different optimizers"),
    ],
)
def test_pages_without_scores(held):
    page = Page(report.render(held, None))
    assert "ranking" not in {s["id"] for s in page.all("section")}
    assert page.data["profiles"] == [] and page.data["speedup"] == []


def test_everything_diverged():
    one = archive(diverged=False)
    for name in one.curves:
        one.curves[name][:, :, 1:] = np.nan
    one.seconds[:] = np.nan
    lacking = dataclasses.replace(
        archive(optimizer="sgd"), curves={"test/loss": archive().curves["test/loss"]}
    )
    page = Page(report.render([one, lacking], None))
    assert page.data["learning"][0][0]["curves"]["train/loss"]["mid"][1:] == [None] * 20
    assert "diverged" in page.inside["td"]


def test_size_of_a_large_report():
    names = [f"optimizer_number_{i}" for i in range(12)]
    tasks = [f"ImageMLP_Dataset_{i}" for i in range(8)]
    held = [
        archive(t, o, settings=9, seeds=5, points=1001, steps=10_000, accuracy=True)
        for t in tasks
        for o in names
    ]
    charts = report_data.charts(contestants(held), tasks, None, "train/loss")
    assert all(len(line["x"]) <= 200 for lines in charts["learning"] for line in lines)
    assert len(json.dumps(charts)) < 2_600_000
    few = report_data.charts(contestants(held[:2]), tasks[:1], None, "train/loss")
    assert len(few["learning"][0][0]["x"]) > 150


def test_numbers_are_rounded():
    values = report_data.numbers([1234567.0, 0.000123456, 2.0, float("nan"), float("inf"), -0.5])
    assert values == [1235000, 0.0001235, 2, None, None, -0.5]
    assert json.dumps(values) == "[1235000, 0.0001235, 2, null, null, -0.5]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (42.0, "42 s"), (600.0, "10.0 min"), (9000.0, "2.5 h"), (np.nan, "–")],
)
def test_durations(seconds, text):
    assert report_tables.duration(seconds) == text


def test_writing(tmp_path):
    held = [archive()]
    assert report.write_report(held, None, tmp_path / "new") == tmp_path / "new" / "index.html"
    assert report.write_report(held, None, tmp_path / "a.html").read_bytes().startswith(b"<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(OuteroptError, match="cannot be written"):
        report.write_report(held, None, tmp_path / "file" / "a.html")
    with pytest.raises(OuteroptError, match="no archives"):
        report.write_report([], None, tmp_path / "b.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_in_a_browser(text, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    lines = "document.querySelectorAll('#chart-curves g[clip-path] .series').length"
    names = "all('#ranking tbody tr').filter((row) => !row.hidden).map((row) => row.dataset.label)"
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.run(lines) == 3 * 4

        best_first = browser.run(names)
        assert len(best_first) == 4
        browser.run("document.querySelector('#ranking th:nth-child(4) button').click()")
        assert browser.run(names) == best_first, "numbers sort from the largest"
        browser.run("document.querySelector('#ranking th:nth-child(4) button').click()")
        assert browser.run(names) == best_first[::-1]
        assert browser.run("document.querySelector('#ranking th:nth-child(4)').ariaSort") == "ascending"

        browser.run("document.querySelector('[data-chip=\"opt_1\"]').click()")
        assert browser.run(lines) == 3 * 3 and "opt_1" not in browser.run(names)
        browser.run("byId('all').click()")
        assert browser.run(lines) == 3 * 4
        browser.run('document.querySelector(\'input[name="ruleset"][value=""]\').click()')
        assert browser.run(lines) == 3 * 8
        browser.run("document.querySelector('[data-go=\"task_1\"]').click()")
        assert browser.run("byId('task').value") == "task_1" and browser.run(lines) == 8

        for choice in ("test/accuracy", "train/loss"):
            browser.run(f"byId('curve').value = '{choice}'; byId('curve').dispatchEvent(new Event('change'))")
            assert choice in browser.run("byId('chart-curves').textContent")
        browser.run("byId('scale').value = 'log'; byId('logx').click()")
        browser.run("document.querySelector('#chart-curves svg').focus()")
        for key in ("Home", "ArrowRight"):
            browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        tip = browser.run("document.querySelector('#chart-curves .tip').textContent")
        assert tip.startswith("inner step") and "opt_0" in tip

        colour = "getComputedStyle(document.body).backgroundColor"
        light = browser.run(colour)
        browser.run("setTheme('dark')")
        assert browser.run(colour) != light

        browser.open(page, width=420)
        assert browser.run("document.documentElement.scrollWidth") <= 420, "no sideways scrolling when narrow"
        assert browser.run(lines) == 3 * 4
        assert browser.problems == []
        assert set(browser.requests) == {page.as_uri()}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_awkward_pages_in_a_browser(tmp_path):
    held = {
        "hostile": [archive(HOSTILE, HOSTILE, HOSTILE)],
        "trial": [archive(settings=1, seeds=1, points=2)],
        "step": [archive(points=1, steps=0)],
    }
    one = archive(diverged=False)
    for name in one.curves:
        one.curves[name][:, :, 1:] = np.nan
    held["diverged"] = [one]
    with Browser(tmp_path / "profile") as browser:
        for name, group in held.items():
            browser.open(report.write_report(group, None, tmp_path / f"{name}.html"))
            assert browser.run("document.querySelectorAll('#chart-curves .series').length") > 0, name
        assert browser.problems == []
