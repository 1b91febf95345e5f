"""The language of ``--format``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.cli.gotemplate import Template, TemplateError, json_of, text_of

DATA = {
    "Id": "abc",
    "State": {"Running": True, "Pid": 12, "Error": ""},
    "Config": {"Labels": {"a": "b", "c.d": "e"}, "Env": ["A=1", "B=2"], "Nothing": None},
    "Empty": {},
    "Text": "hello big world",
    "Mounts": [{"Source": "/a", "RW": True}, {"Source": "/b", "RW": False}],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.Id}} is {{.State.Pid}}", "abc is 12"),
        ("{{.State}}", "map[Error: Pid:12 Running:true]"),
        ("{{.Config.Env}}", "[A=1 B=2]"),
        ("{{.Config.Nothing}}", "<no value>"),
        ("{{.Config.Labels.zz}}", "<no value>"),
        ('{{index .Config.Labels "c.d"}}|{{index .Config.Labels "zz"}}|', "e||"),
        ("{{index .Config.Env 1}}", "B=2"),
        ("{{(index .Mounts 0).Source}}", "/a"),
        ("{{json .State}}", '{"Running":true,"Pid":12,"Error":""}'),
        ("{{.State | json}}", '{"Running":true,"Pid":12,"Error":""}'),
        ("{{range .Config.Env}}{{.}};{{end}}", "A=1;B=2;"),
        ("{{range $i, $e := .Config.Env}}{{$i}}{{$e}} {{end}}", "0A=1 1B=2 "),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}},{{end}}", "a=b,c.d=e,"),
        ("{{range .Mounts}}{{if .RW}}{{.Source}}{{end}}{{end}}", "/a"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range .Config.Env}}{{break}}{{end}}!", "!"),
        ("{{range .Config.Env}}{{continue}}x{{end}}!", "!"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Error}}e{{else if eq .State.Pid 12}}twelve{{else}}x{{end}}", "twelve"),
        ("{{with .State}}{{.Pid}} {{$.Id}}{{end}}", "12 abc"),
        ("{{with .State.Error}}x{{else}}fine{{end}}", "fine"),
        ("{{$x := .Id}}{{$x = upper $x}}{{$x}}", "ABC"),
        ('{{join (split .Text " ") "-"}}', "hello-big-world"),
        ("{{title .Text}} {{upper .Id}} {{lower `ABC`}}", "Hello Big World ABC abc"),
        ("{{truncate .Text 5}}{{pad .Id 1 2}}|", "hello abc  |"),
        ("{{slice .Text 6 9}}", "big"),
        ("{{len .Config.Env}} {{len .Text}}", "2 15"),
        ('{{printf "%s %05d %-4s| %q %v %t" .Id 42 "x" "y" .Config.Env true}}',
         'abc 00042 x   | "y" [A=1 B=2] true'),
        ('{{println .Id 1}}x', "abc 1\nx"),
        ('{{print "a" 1 2 "b"}}', "a1 2b"),
        ("{{and .Id .State.Pid}} {{or .State.Error .Id}} {{not .State.Running}}", "12 abc false"),
        ("{{and .State.Error .State.Nope}}|", "|"),
        ('{{eq .Id "x" "abc"}} {{ne 1 2}} {{lt 1 2}} {{ge 2 2}} {{gt 1 2}} {{le 3 2}}',
         "true true true true false false"),
        ("a {{- .Id -}} b", "aabcb"),
        ("a {{/* nothing */}} b", "a  b"),
        ("{{- /* nothing */ -}} b", "b"),
        ("{{`a\\n`}}{{\"\\t\\u00e9\"}}{{'a'}}", "a\\n\té97"),
        ('{{"}}"}}', "}}"),
        ("{{.State.Health}}", "<no value>"),
        ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
    ],
)  # fmt: skip
def test_a_template_gives_what_go_gives(template: str, text: str) -> None:
    assert Template(template).render(DATA) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Id", "template: :1: unclosed action"),
        ("{{foo}}", 'template: :1: function "foo" not defined'),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ("{{if .Id}}", "template: :1: unexpected EOF"),
        ("a\n{{end}}", "template: :2: unexpected {{end}}"),
        ("{{}}", "template: :1: missing value for command"),
        ("{{.Id | }}", "template: :1: missing value for command"),
        ('{{"x}}', "template: :1: unterminated quoted string"),
        ("{{/* x}}", "template: :1: unclosed comment"),
        (
            "{{.Foo}}",
            'template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"',
        ),
        (
            "{{.State.Foo}}",
            'template: :1:8: executing "" at <.State.Foo>: map has no entry for key "Foo"',
        ),
        (
            "x {{.Id.Foo}}",
            'template: :1:7: executing "" at <.Id.Foo>: can\'t evaluate field Foo in type string',
        ),
        (
            "{{index .Config.Env 5}}",
            (
                'template: :1:2: executing "" at <index .Config.Env 5>: '
                "error calling index: index out of range: 5"
            ),
        ),
        (
            "{{.Id 1}}",
            'template: :1:2: executing "" at <.Id>: Id is not a method but has arguments',
        ),
    ],
)
def test_a_wrong_template_is_refused_in_go_s_words(template: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(template).render(DATA)
    assert str(caught.value) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_actions_is_itself(text: str) -> None:
    assert Template(text).render({}) == text


@given(JSON)
def test_json_is_what_it_was(value: Any) -> None:
    assert json.loads(Template("{{json .}}").render(value)) == value
    assert json.loads(json_of(value)) == value


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Za-z0-9_]{0,8}", fullmatch=True), st.text()))
def test_a_field_is_found_whichever_way_it_is_asked_for(value: dict[str, str]) -> None:
    for name in value:
        # Go leaves the texts of maps alone, and so do we.
        assert Template("{{." + name + "}}").render(value) == value[name]
        assert Template('{{index . "' + name + '"}}').render(value) == value[name]
        assert Template("{{with $x := ." + name + "}}{{$x}}{{end}}").render(value) == value[name]


@given(st.lists(st.text()))
def test_a_range_goes_over_all_and_in_order(items: list[str]) -> None:
    assert Template("{{range .}}{{.}},{{end}}").render(items) == "".join(f"{i}," for i in items)
    assert Template('{{join . ","}}').render(items) == ",".join(items)
    assert Template("{{len .}}").render(items) == str(len(items))


@given(st.text(alphabet="{}.|()$\"'`-:= \nabxif end range json/*\\0159", max_size=40))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        Template(text).render({"a": [1]})
    except TemplateError:
        return


@given(JSON)
def test_every_value_can_be_printed(value: Any) -> None:
    assert isinstance(text_of(value), str)
