"""Any input is read correctly or refused in one line; of a damaged journal, everything before the damage is read."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from harness.config import yaml_io
from harness.config.settings import Config, canonical_name, coerce, is_switch, setting_fields, setting_types
from harness.tracking.journal import Journal, read_journal
from harness.utils.errors import CheckpointError, DataError, HarnessError, UsageError
from tests.support.records import epoch, final, same

WORDS = st.text(max_size=30) | st.sampled_from(
    ["nan", "1e400", "-0", "1_000", "0x10", "٣", "true", "NULL", "{a: [", "a=b,c"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.binary(max_size=4)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)


@examples(max_examples=400)
@given(st.sampled_from(list(setting_fields())), ANYTHING)
@example("epochs", "١")
@example("model_args", {1: {2: float("nan")}})
@example("lr_max", 10**400)
@example("epochs", "1e309")
@example("batch_size", "9" * 5000)
def test_any_value_of_any_setting_is_converted_to_its_type_or_refused_in_one_line(name, value):
    try:
        converted = coerce(name, value)
    except UsageError as error:
        assert name in str(error)
        return
    assert coerce(name, converted) == converted, "a converted value stays as it is"
    assert json.dumps(list(converted) if isinstance(converted, tuple) else converted, allow_nan=False) is not None
    if is_switch(name):
        assert isinstance(converted, bool) or (converted is None and setting_types()[name] is not bool)


def legal(name):
    """Values that a setting allows."""
    about, kind = setting_fields()[name].metadata, setting_types()[name]
    if about["choices"]:
        return st.sampled_from(about["choices"])
    if is_switch(name):
        return st.booleans() if kind is bool else st.none() | st.booleans()
    low = about["low"] if about["low"] is not None else about["above"] if about["above"] is not None else 0
    high = min(about["high"] or about["below"] or 1e6, 1e6)
    if kind is int:
        return st.integers(int(low), int(high))
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
    if name == "model_args":
        plain = (
            st.booleans()
            | st.integers(-(2**40), 2**40)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(string.printable.strip(), max_size=8)
        )
        return st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=8), plain, max_size=3)
    if kind == tuple[str, ...]:
        return st.lists(st.text(string.ascii_letters + "é🎉.-", min_size=1, max_size=8), max_size=3).map(tuple)
    return st.floats(
        float(low), float(high), exclude_min=about["above"] is not None, exclude_max=about["below"] is not None
    )


CONFIGS = st.dictionaries(st.sampled_from(list(setting_fields())), st.none(), max_size=12).flatmap(
    lambda chosen: st.fixed_dictionaries({name: legal(name) for name in chosen})
)


@pytest.mark.slow
@examples(max_examples=200)
@given(CONFIGS)
def test_any_configuration_comes_back_equal_from_its_file_and_from_json(values):
    try:
        config = Config(**values)
    except UsageError:
        return  # two of them do not fit each other
    text = config.to_yaml()
    assert Config(**yaml_io.parse_yaml(text)) == config
    assert Config(**json.loads(json.dumps(config.to_dict()))) == config
    assert Config(**yaml_io.parse_yaml(text)).digest() == config.digest()


@examples(max_examples=300)
@given(st.text(max_size=200) | st.text("[]{}:,-&*!|>'\"#%@`? \n\t0aé~", max_size=80))
@example("? [a]\n: b")
@example("a: &x\n  <<: *x")
@example("<<: 3")
@example("a: 0o17")
@example("%YAML 9.9\n---\na: 1")
@example("!!float x")
@example("- !!int 9e9")
@example("{" * 40)
@example("a: 1" + "0" * 5000)
@example("<<: [1]")
@example("!!null x: 1")
@example("!!bool maybe")
def test_any_text_as_yaml_is_read_or_refused_in_one_line(text):
    try:
        value = yaml_io.parse_yaml(text, "file.yaml")
    except UsageError as error:
        assert str(error).startswith("file.yaml")
        assert "\n" not in str(error)
        return
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        assert same(yaml_io.parse_yaml(yaml_io.dump_yaml(value)), value)


@examples(max_examples=200)
@given(st.text(max_size=40))
def test_any_text_as_the_name_of_a_setting_names_one_or_is_refused(word):
    try:
        assert canonical_name(word) in setting_fields()
    except UsageError as error:
        assert "there is no setting" in str(error)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a journal with two epochs, a final record with pictures, and its end."""
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder, {"config": {"seed": 1}, "environment": {}})
    for record in (epoch(1), epoch(2), final(6)):
        journal.record(record)
    journal.alert("title", "text \u2028 🎉")
    journal.summary({"val/acc": 0.5})
    journal.finish("finished", 0)
    return folder


def lines_before(content, cut):
    """Return the number of complete lines before a cut."""
    return content[:cut].count(b"\n")


@pytest.mark.slow
@examples(max_examples=250)
@given(st.data())
def test_a_journal_cut_at_any_byte_is_read_up_to_its_last_whole_record(written, tmp_path_factory, data):
    content = (written / "journal.jsonl").read_bytes()
    cut = data.draw(
        st.integers(0, len(content)) | st.sampled_from([index for index, byte in enumerate(content) if byte == 10])
    )
    folder = tmp_path_factory.getbasetemp() / "cut"
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_bytes(content[:cut])
    contents, lines = read_journal(folder), lines_before(content, cut)
    assert len(contents.records) == max(0, min(3, lines - 1))
    assert all(
        map(
            same,
            [record.values.keys() for record in contents.records],
            [record.values.keys() for record in (epoch(1), epoch(2), final(6))],
        )
    )
    assert contents.whole == (cut == len(content))
    step = data.draw(st.sampled_from([0, 3, 6]))
    try:
        journal = Journal.resume(folder, step)
    except CheckpointError:
        assert lines == 0
        return
    journal.record(epoch(3))
    journal.finish("finished", 0)
    resumed = read_journal(folder)
    assert resumed.whole
    steps = [record.step for record in resumed.records if record.kind == "epoch"]
    assert steps == [*[known for known in (3, 6)[: max(0, lines - 1)] if known <= step], 9]


@examples(max_examples=200)
@given(st.data())
def test_a_journal_with_any_damage_is_read_up_to_it_and_never_raises(written, tmp_path_factory, data):
    content = bytearray((written / "journal.jsonl").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(content) - 1))
        content[index : index + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=5))
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_bytes(bytes(content))
    contents = read_journal(folder)
    assert len(contents.records) <= 4
    try:
        Journal.resume(folder, 6).finish("failed", 1)
    except HarnessError as error:
        assert isinstance(error, CheckpointError | DataError)


LINES = st.lists(
    st.dictionaries(
        st.sampled_from(["kind", "step", "epoch", "values", "steps", "files", "name", "type", "summary", "status"]),
        ANYTHING.filter(lambda value: "b'" not in repr(value)) | st.sampled_from(["header", "epoch", "final", "artifact", "summary", "alert"]),
        max_size=6,
    ),
    max_size=4,
)  # fmt: skip


@examples(max_examples=200)
@given(LINES)
@example([{"kind": "epoch", "step": "x"}])
@example([{"kind": "header"}, {"kind": "epoch", "step": None}])
@example([{"kind": "header"}, {"kind": "epoch", "step": 10**400, "values": {}}])
def test_any_lines_of_json_as_a_journal_raise_only_the_documented_errors(tmp_path_factory, lines):
    folder = tmp_path_factory.getbasetemp() / "lines"
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line, default=repr) + "\n" for line in lines))
    read_journal(folder)
    try:
        Journal.resume(folder, 6).finish("failed", 1)
    except HarnessError as error:
        assert isinstance(error, CheckpointError | DataError)
