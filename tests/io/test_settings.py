"""Settings of runs as nested mappings."""

from glc.io.settings import differing, flat


def test_nested_settings_have_dotted_keys_and_lists_are_values() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_a_key_that_refers_to_another_is_left_out() -> None:
    runs = [{"module": {"lmbda": value}, "lmbda": value, "seed": 0} for value in (1.0, 2.0)]
    assert differing(runs) == {"lmbda": [1.0, 2.0]}


def test_the_run_s_own_folder_counts_as_equal() -> None:
    runs = [{"dir": f"runs/{name}", "logger": {"save_dir": f"runs/{name}/csv"}} for name in "ab"]
    assert differing(runs) == {}
    runs[1]["logger"] = {"save_dir": "elsewhere/csv"}
    assert differing(runs) == {"logger.save_dir": ["runs/a/csv", "elsewhere/csv"]}


def test_missing_and_null_are_equal_but_one_and_true_are_not() -> None:
    assert differing([{"a": None}, {}]) == {}
    assert differing([{"a": 1}, {"a": True}]) == {"a": [1, True]}
