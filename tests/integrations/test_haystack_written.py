"""A pipeline in YAML that the first version wrote opens with the same settings."""

from __future__ import annotations

from pathlib import Path

import yaml
from haystack import Pipeline

WRITTEN = Path(__file__).with_name("haystack_written.yaml").read_text(encoding="utf-8")


def test_every_setting_of_a_written_pipeline_is_read_and_written_again(monkeypatch):
    monkeypatch.setenv("KEY", "hunter2")
    written = yaml.safe_load(WRITTEN)["components"]
    again = yaml.safe_load(Pipeline.loads(WRITTEN).dumps())["components"]
    assert again.keys() == written.keys()
    for name, component in written.items():
        settings, kept = component["init_parameters"], again[name]["init_parameters"]
        store, kept_store = (each.pop("document_store", None) for each in (settings, kept))
        assert again[name]["type"] == component["type"]
        # A setting that is newer is off.
        newer = {name: kept[name] for name in kept.keys() - settings.keys()}
        assert kept == {**settings, **newer}
        assert not any(newer.values())
        # Another version of qdrant-haystack may write more of its own store, but no less.
        assert lacking(store, kept_store) == {}


def lacking(store, kept):
    """The settings of a document store that are not as they were."""
    if store is None or "init_parameters" not in store:
        return {} if store == kept else store
    assert kept["type"] == store["type"]
    ours, theirs = store["init_parameters"], kept["init_parameters"]
    return {key: value for key, value in ours.items() if theirs.get(key) != value}
