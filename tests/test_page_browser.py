"""The page of runs in a real browser: its charts, what can be found, and that no text of a model does anything."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote

import pytest
from browser import Browser, assert_quiet
from records import answer, episode, group, write_run
from selenium.webdriver import ActionChains, Keys

from r3core.console import visible
from r3core.episode import Episode, Reflection, Round
from r3core.page import write_page
from r3core.serve import LivePage, PageServer

pytestmark = pytest.mark.browser

HACK = "window.hacked = 1; document.title = 'hacked'"
HOSTILE = [
    f"<script>{HACK}</script>",
    f"</script><script>{HACK}</script>",
    f"<!--<script>{HACK}",
    f"--><script>{HACK}</script>",
    f'<img src=x onerror="{HACK}">',
    f'"><svg onload="{HACK}">',
    f"' onmouseover='{HACK}' x='",
    f'" onfocus="{HACK}" autofocus tabindex=0 x="',
    '</pre></details></main></body><iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>',
    "</style></title></textarea></noscript><style>main { display: none }</style>",
    "<base href='https://example.org/'><link rel=stylesheet href='//example.org/a.css'>",
    "<meta http-equiv=refresh content='0;url=https://example.org/'>",
    f'<a href="javascript:{HACK}">link</a>',
    f"javascript:{HACK}",
    "<form action='https://example.org/'><button>send</button></form>",
    f"{{{{ 7 * 7 }}}} {{% raw %}} ${{{HACK}}} `${{{HACK}}}`",
    f"datum.constructor.constructor('{HACK}')()",
    "\u202egnp.exe\u202c \u2066isolated\u2069 \u200bzero width",
    "\x1b[31mred\x1b]0;title\x07 \x9b2J \x00 \x7f \r carriage return",
    f"\u2028{HACK}\u2029 \ufeff \ufffe",
    "a\ttab & = # % %zz ?q=1 / \\ \\u003c",
    "long " + "m" * 1_000_000,
    "lines " + "x\n" * 5_000,
    "__proto__",
    "constructor",
    "hasOwnProperty",
]
HALF = "half a surrogate pair \ud83d."
_SHORT = [text for text in HOSTILE if len(text) < 1_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """The page of a finished run, with one problem for each filter."""
    base = [
        episode("solved by both", "pass", attempt="7"),
        episode("broken", "fail pass", kind="sum", controls=True),
        episode("fixed", "fail fail", kind="sum", attempt="a wrong sum", controls=True),
        episode("by neither", "fail fail", kind="format", leaked=True, controls=True),
        episode("cut off", "fail fail", kind="format", controls=True, stopped="length"),
        episode("not judged", "error", attempt="unclear"),
        *[episode(f"more {number}", "fail fail", kind="sum", controls=True) for number in range(60)],
    ]
    trained = [
        episode("solved by both", "pass", attempt="7"),
        episode("broken", "fail fail", kind="format", controls=True),
        episode("fixed", "fail pass", kind="sum", reflection="I added wrongly.", controls=True),
        episode("by neither", "fail fail", kind="format", controls=True),
        episode("cut off", "fail fail", kind="format", controls=True),
        episode("not judged", "error", attempt="unclear"),
        *[episode(f"more {number}", "fail pass", kind="sum", controls=True) for number in range(60)],
    ]
    mined = [episode(name, "fail") for name in ("g1", "g2", "g3")]
    groups = [*group("g1", [0, 1, 0, 1]), *group("g2", [0, 0], step=2), *group("g3", [1, 1], step=3)]
    run = write_run(folder / "finished", mined=mined, groups=groups, steps=30, base=base, trained=trained)
    return write_page([run], folder / "finished.html")


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Path:
    """The page of a run in which every text that a model or a task writes is hostile."""

    def episodes(outcomes: str, texts: list[str]) -> list[Episode]:
        return [
            episode(
                f"{number} {text[:300].replace(HALF, 'half')}",
                outcomes,
                attempt=text,
                reflection=text,
                retry=text,
                reason=text,
                kind=text[:300],
                prompt=text,
                thinking=text,
                controls=outcomes != "fail",
            )
            for number, text in enumerate(texts)
        ]

    mined = episodes("fail", _SHORT)
    groups = [
        row
        for number, text in enumerate(_SHORT)
        for row in group(f"{number} {text}", [0, 1], step=number + 1, reflection=text, retry=text, reason=text)
    ]
    run = write_run(
        folder / "<img src=x onerror='window.hacked = 1'>",
        mined=mined,
        groups=groups,
        steps=len(_SHORT),
        base=episodes("fail fail", [*HOSTILE, HALF]),
        trained=episodes("fail pass", [*HOSTILE, HALF]),
        settings={"wording": {"retry": _SHORT[0] + _SHORT[1]}, "model": _SHORT[4]},
    )
    return write_page([run], folder / "hostile.html")


def open_all(browser: Browser, kind: str) -> int:
    """Show all problems or groups of a page with their conversations, and return how many there are."""
    choose(browser, "kind", kind)
    while browser.run("return !document.getElementById('more').hidden"):
        browser.run("document.getElementById('more').click()")
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    opened = "[...document.querySelectorAll('details.episode')].every((one) => one.querySelector('.body'))"
    browser.wait(f"return {opened}")
    return int(browser.run("return document.querySelectorAll('details.episode').length"))


def choose(browser: Browser, field: str, value: str) -> None:
    """Set a filter as a person does."""
    browser.run(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }));",
        field,
        value,
    )


def listed(browser: Browser) -> list[str]:
    """Return the keys of the episodes in the list."""
    return list(browser.run("return [...document.querySelectorAll('details.episode')].map((one) => one.dataset.key)"))


def chart_names(browser: Browser) -> list[str]:
    """Wait until every chart is there, and return their names."""
    browser.wait("return [...document.querySelectorAll('[data-chart]')].every((one) => one.childElementCount)")
    return list(browser.run("return [...document.querySelectorAll('[data-chart]')].map((one) => one.dataset.chart)"))


# ---- quiet and offline


def test_a_page_opens_from_disk_without_an_error_or_a_request(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    chart_names(browser)
    assert open_all(browser, "problems") == 66
    assert open_all(browser, "groups") == 3
    assert_quiet(browser, finished)


def test_hostile_text_does_nothing(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    title = browser.run("return document.title")
    chart_names(browser)
    for kind in ("problems", "groups"):
        assert open_all(browser, kind) > 0
        browser.run(
            "for (const one of document.querySelectorAll('main *')) for (const name of ['mouseover', 'focus', 'click'])"
            "  if (one.localName !== 'a' && one.localName !== 'summary') one.dispatchEvent(new Event(name));"
        )
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.title") == title
    assert_quiet(browser, hostile)


def test_hostile_text_makes_no_element(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    chart_names(browser)
    for kind in ("problems", "groups"):
        open_all(browser, kind)
        foreign = "iframe, img, object, embed, base, link, textarea, meta[http-equiv=refresh], body style"
        found = "return [...document.querySelectorAll(arguments[0])].map((one) => one.outerHTML.slice(0, 200))"
        assert browser.run(found, foreign) == []
        assert browser.run("return document.querySelectorAll('form:not(#filters, .vega-bindings)').length") == 0
        assert browser.run("return document.scripts.length") == 3
        handlers = "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
        assert browser.run(f"return {handlers}.filter((name) => name.startsWith('on'))") == []
        assert browser.run("return [...document.links].filter((one) => one.protocol !== 'file:').length") == 0


def test_hostile_text_is_shown_as_it_is_with_what_cannot_be_seen_escaped(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    assert open_all(browser, "problems") == len(HOSTILE) + 1
    shown = browser.run("return [...document.querySelectorAll('pre')].map((one) => one.textContent)")
    for text in (*_SHORT, HALF):
        assert visible(text, keep="\n\t") in shown
    content = browser.run("return document.querySelector('main').textContent + document.title")
    for hidden in "\x00\x1b\x07\x7f\x9b\u202e\u202c\u2066\u2069\u200b\u2028\u2029":
        assert hidden not in content


def test_the_page_of_megabytes_of_text_is_small(finished: Path, hostile: Path) -> None:
    assert hostile.stat().st_size < finished.stat().st_size + 2_000_000 < 5_000_000


def test_a_policy_forbids_scripts_that_are_not_of_the_page(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    browser.run(
        "const script = document.createElement('script'); script.textContent = arguments[0];"
        "document.body.append(script);"
        "document.body.insertAdjacentHTML('beforeend', `<img src='data:,' onerror=\"${arguments[0]}\">`);",
        HACK,
    )
    assert browser.run("return window.hacked") is None
    assert any("Content Security Policy" in line for line in browser.console())


# ---- charts


def test_charts_and_curves_have_marks(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    names = chart_names(browser)
    assert {"rates", "curve-reward"} <= set(names)
    for name in names:
        marks = f"[data-chart='{name}'] svg .mark-group.role-mark, [data-chart='{name}'] svg .role-mark"
        assert browser.run("return document.querySelectorAll(arguments[0]).length", marks) > 0, name
        paths = f"[data-chart='{name}'] svg :is(path, rect, circle)"
        assert browser.run("return document.querySelectorAll(arguments[0]).length", paths) > 2, name
    assert "cannot be shown" not in browser.run("return document.body.innerText")


def test_curves_are_drawn_against_steps_or_generated_tokens(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mined=[episode("g1", "fail")], groups=group("g1", [0, 1]), steps=4)
    file = run / "train.jsonl"
    lines = file.read_text().splitlines()
    counted = [json.loads(line) | {"tokens/generated": 1_000 * number} for number, line in enumerate(lines, 1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in counted))
    page = write_page([run], tmp_path / "page.html")
    browser.open(page)
    titles = (
        "const found = [...document.querySelectorAll('[data-chart=curve-reward] .role-axis-title text')]"
        ".map((title) => title.textContent); return found.includes(arguments[0]) && found"
    )
    assert browser.wait(titles, "step") == ["step"]
    choose(browser, "against", "generated tokens")
    assert browser.wait(titles, "generated tokens") == ["generated tokens"]
    assert_quiet(browser, page)


def test_without_counted_tokens_curves_have_steps_only(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    assert browser.run("return document.getElementById('against')") is None


def test_further_rounds_are_part_of_the_conversation(browser: Browser, tmp_path: Path) -> None:
    further = Round(reflection=Reflection(text="Once more.", tokens=2), retry=answer("pass", "7 at last"))
    made = episode("a", "fail fail").model_copy(update={"rounds": (further,)})
    page = write_page([write_run(tmp_path / "run", base=[made])], tmp_path / "page.html")
    browser.open(page)
    browser.driver.find_element("css selector", "details.episode summary").click()
    browser.wait("return document.querySelector('details.episode .column')")
    headings = browser.run(
        "return [...document.querySelectorAll('.column h4')].map((one) => one.textContent.split(' ')[0])"
    )
    assert headings == ["attempt", "user", "reflection", "user", "retry", "user", "reflection", "user", "retry"]
    choose(browser, "search", "7 at last")
    assert len(listed(browser)) == 1


# ---- finding an episode


@pytest.mark.parametrize(
    ("outcome", "keys"),
    [
        ("newly broken", {"broken"}),
        ("solved by both", {"solved by both"}),
        ("solved by neither", {"by neither", "cut off"}),
        ("base: fixed by the retry", {"broken"}),
        ("base: not judged", {"not judged"}),
    ],
)
def test_episodes_are_filtered_by_outcome(browser: Browser, finished: Path, outcome: str, keys: set[str]) -> None:
    browser.open(finished)
    choose(browser, "outcome", outcome)
    assert set(listed(browser)) == keys
    assert browser.run("return document.getElementById('found').textContent").startswith(f"{len(keys)} of 66 ")


def test_episodes_are_filtered_by_category_leak_and_truncation(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    choose(browser, "category", "format")
    assert set(listed(browser)) == {"broken", "by neither", "cut off"}
    choose(browser, "category", "")
    browser.driver.find_element("id", "leaked").click()
    assert listed(browser) == ["by neither"]
    browser.driver.find_element("id", "leaked").click()
    browser.driver.find_element("id", "truncated").click()
    assert listed(browser) == ["cut off"]


@pytest.mark.parametrize(("text", "keys"), [("A WRONG SUM", ["fixed"]), ("added wrongly", ["fixed"]), ("zzz", [])])
def test_episodes_are_found_by_any_text_in_them(browser: Browser, finished: Path, text: str, keys: list[str]) -> None:
    browser.open(finished)
    browser.driver.find_element("id", "search").send_keys(text)
    assert listed(browser) == keys


def test_more_episodes_are_shown_on_request(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    few = len(listed(browser))
    browser.driver.find_element("id", "more").click()
    assert few < len(listed(browser)) == 66
    assert not browser.driver.find_element("id", "more").is_displayed()


def test_groups_of_training_are_sorted_by_reward(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    choose(browser, "kind", "groups")
    choose(browser, "outcome", "different rewards")
    assert len(listed(browser)) == 1
    open_all(browser, "groups")
    tags = browser.run(
        "return [...document.querySelectorAll('details.episode .tag')].map((one) => one.textContent)"
        ".filter((text) => text.startsWith('reward '))"
    )
    assert tags == ["reward 1", "reward 1", "reward 0", "reward 0"]


@pytest.mark.parametrize("place", ["fresh", "open"])
def test_a_link_opens_its_episode_wherever_it_is(browser: Browser, finished: Path, place: str) -> None:
    link = f"{finished.as_uri()}#episode={quote('more 59')}"
    browser.open(finished if place == "open" else link)
    choose(browser, "kind", "groups") if place == "open" else None
    browser.run("location.href = arguments[0]", link)
    browser.wait("return document.querySelector('details.episode[open]')?.dataset.key === 'more 59'")
    assert "reflection" in browser.run("return document.querySelector('details.episode[open]').textContent")


def test_each_episode_names_its_own_link(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    for kind in ("problems", "groups"):
        open_all(browser, kind)
        keys = listed(browser)
        links = browser.run("return [...document.querySelectorAll('.link')].map((one) => one.href)")
        assert len(links) == len(set(links)) == len(keys)
        for key, link in zip(keys, links, strict=True):
            browser.run("location.href = arguments[0]", link)
            opened = "return [...document.querySelectorAll('details.episode[open]')].map((one) => one.dataset.key)"
            browser.wait(f"{opened}.join() === arguments[0]", key)


@pytest.mark.parametrize(
    "fragment", ["episode=no such", "episode=%zz", "episode=", "filter=<b>", "nothing", "__proto__"]
)
def test_a_link_to_nothing_is_harmless(browser: Browser, finished: Path, fragment: str) -> None:
    link = f"{finished.as_uri()}#{fragment}"
    browser.open(link)
    assert browser.run("return document.getElementById('list') !== null")
    assert_quiet(browser, link)


def test_the_counts_of_changes_are_links_to_their_episodes(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    link = "return [...document.querySelectorAll('.changes a')].find((one) => one.textContent.includes('newly broken'))"
    browser.run(f"({link.removeprefix('return ')}).click()")
    browser.wait("return document.querySelectorAll('details.episode').length === 1")
    assert listed(browser) == ["broken"]


# ---- every way to read it


def test_the_page_is_used_by_keyboard_alone(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    browser.run("document.getElementById('search').focus()")
    ActionChains(browser.driver).send_keys("a wrong sum", Keys.TAB).perform()
    assert browser.run("return document.activeElement.localName") == "summary"
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    browser.wait("return document.querySelector('details.episode[open]')?.dataset.key === 'fixed'")


def test_fields_charts_and_tables_have_names(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    chart_names(browser)
    fields = "[...document.querySelectorAll('select, input')]"
    unnamed = f"return {fields}.filter((one) => !one.labels.length).map((one) => one.id)"
    assert browser.run(unnamed) == []
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run("return document.querySelectorAll('h1').length") == 1
    labels = browser.run("return [...document.querySelectorAll('[data-chart]')].map((one) => one.ariaLabel)")
    assert all(labels)


_CONTRAST = """
const colour = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number).map((value) => value / 255)
  .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const light = (text) => colour(text).reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
const behind = (one) => {
  for (let at = one; at; at = at.parentElement) {
    const found = getComputedStyle(at).backgroundColor;
    if (found !== 'rgba(0, 0, 0, 0)') return found;
  }
  return 'rgb(255, 255, 255)';
};
const ratio = (one) => {
  const [low, high] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
return ['p', 'h1', '.meaning', '.pass', '.fail', '.error', '.trained', 'a', 'summary', '.tag', 'th', 'pre', 'select']
  .filter((name) => document.querySelector(name)).map((name) => [name, ratio(document.querySelector(name))]);
"""


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_text_has_contrast_in_light_and_dark(browser: Browser, finished: Path, scheme: str, dark: bool) -> None:
    with browser.emulated(prefers_color_scheme=scheme):
        browser.open(finished)
        open_all(browser, "problems")
        ratios = dict(browser.run(_CONTRAST))
        background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ratios.keys() >= {"p", ".meaning", ".pass", ".fail", ".trained", "a"}
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    assert (sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 150) == dark


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("which", ["finished", "hostile"])
def test_nothing_is_wider_than_the_screen(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int
) -> None:
    page = request.getfixturevalue(which)
    with browser.emulated(width=width):
        browser.open(page)
        chart_names(browser)
        for kind in ("problems", "groups"):
            open_all(browser, kind)
            assert browser.run("return document.documentElement.scrollWidth") <= width
            assert browser.run("return window.innerWidth") == width


def test_the_page_prints_without_its_controls(browser: Browser, finished: Path) -> None:
    browser.open(finished)
    chart_names(browser)
    with browser.emulated(media="print", prefers_color_scheme="dark"):
        assert not browser.driver.find_element("id", "filters").is_displayed()
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = base64.b64decode(browser.command("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2


# ---- other runs


def test_the_page_of_a_run_killed_in_training_shows_its_groups(browser: Browser, tmp_path: Path) -> None:
    mined = [episode("g1", "fail")]
    run = write_run(tmp_path / "run", mined=mined, groups=group("g1", [0, 1]), steps=2, finished=["mine"])
    page = write_page([run], tmp_path / "page.html")
    browser.open(page)
    assert "curve-reward" in chart_names(browser)
    assert open_all(browser, "groups") == 1
    assert_quiet(browser, page)


def test_the_page_of_a_run_without_a_row_opens(browser: Browser, tmp_path: Path) -> None:
    page = write_page([write_run(tmp_path / "run", finished=())], tmp_path / "page.html")
    browser.open(page)
    assert listed(browser) == []
    assert_quiet(browser, page)


def test_several_runs_share_a_page_problem_by_problem(browser: Browser, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, steps=3, base=[episode("p", "fail fail")], trained=[episode("p", retry=name)])
        for name in ("one", "two")
    ]
    page = write_page(runs, tmp_path / "page.html")
    browser.open(page)
    chart_names(browser)
    assert open_all(browser, "problems") == 1
    columns = browser.run("return [...document.querySelectorAll('.column')].map((one) => one.textContent)")
    assert len(columns) == 4
    assert ["one" in columns[1], "two" in columns[3]] == [True, True]
    assert_quiet(browser, page)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[LivePage, Path, str]]:
    """The page of a run in progress, its directory and its address."""
    run = write_run(tmp_path / "run", mined=[episode("a", "fail")], finished=())
    (run / ".lock.pid").write_text(str(os.getpid()))
    page = LivePage([run], lambda *, live: write_page([run], tmp_path / "page.html", live=live))
    page.refresh()
    stopped = Event()
    with PageServer(page) as server:
        thread = Thread(target=server.serve, args=[stopped])
        thread.start()
        yield page, run, f"http://127.0.0.1:{server.port}/"
        stopped.set()
        thread.join()


def test_an_open_page_follows_the_run(browser: Browser, served: tuple[LivePage, Path, str]) -> None:
    page, run, address = served
    browser.open(address)
    assert len(listed(browser)) == 1
    write_run(run, mined=[episode("a", "fail"), episode("b", "fail")], finished=())
    page.refresh(1e9)
    browser.wait("return document.querySelectorAll('details.episode').length === 2")
    assert browser.console() == []
    assert {one.removeprefix(address) for one in browser.requests()} <= {"", "version"}
