from html.parser import HTMLParser

from fastcifar.results import page

NASTY = "<b>&\"'\n"
ESCAPED = "&lt;b&gt;&amp;&quot;&#x27;\\n"


def test_text_is_escaped_and_html_is_not() -> None:
    assert page.escaped(NASTY) == ESCAPED
    assert page.escaped(page.Html("<b>")) == "<b>"
    assert page.escaped(page.escaped(NASTY)) == ESCAPED
    assert page.joined("<", page.Html("<i>"), ">") == "&lt;<i>&gt;"


def test_every_part_escapes_what_it_is_given() -> None:
    parts = [
        page.paragraph(NASTY),
        page.code(NASTY),
        page.annotated(NASTY, NASTY),
        page.link(NASTY, NASTY),
        page.section(NASTY, NASTY, anchor=NASTY),
        page.table([NASTY], [[NASTY]], label=NASTY),
        page.cards([(NASTY, NASTY, NASTY)]),
        page.picture(b"<svg/>", NASTY),
        page.folded(NASTY, NASTY),
    ]
    for part in (*parts, page.document(NASTY, NASTY, footer=NASTY)):
        assert "<b>" not in part
        assert '&"' not in part
        assert ESCAPED in part


def test_a_table_tells_text_from_figures() -> None:
    table = page.table(["run", "state", "n"], [["a", "b", "3"]], label="Runs", num_text_columns=2)
    assert '<th scope="col">run</th><th scope="col">state</th><th scope="col" class="figure">n</th>' in table
    assert '<tr><th scope="row">a</th><td>b</td><td class="figure">3</td></tr>' in table


def test_nested_values_are_rows() -> None:
    content = {"cpu": "x", "versions": {"torch": "2.15.0", "more": {"deep": None}}, "mean": [0.5, 1]}
    assert page.nested_rows(content) == [
        ("cpu", "x"),
        ("versions torch", "2.15.0"),
        ("versions more deep", "None"),
        ("mean", "0.5, 1"),
    ]


def test_a_document_is_complete_and_allows_nothing_from_outside() -> None:
    found: dict[str, dict[str, str | None]] = {}

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            values = dict(attributes)
            found[values.get("name") or values.get("http-equiv") or tag] = values

    content = page.document("A title", "text", footer="the end")
    Parser().feed(content)
    assert content.startswith("<!DOCTYPE html>\n")
    assert found["html"]["lang"] == "en"
    assert found["viewport"]["content"] == "width=device-width, initial-scale=1"
    policy = found["Content-Security-Policy"]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "<title>A title</title>" in content
    assert "<h1>A title</h1>" in content
    assert "prefers-color-scheme: dark" in content
    assert "<script" not in found
