"""A set of label maps as Hugging Face's `datasets` has it."""

import numpy as np
import pytest
import torch
from test_segmentation_sets import NAMES, RUN, patches, teacher, write_set  # noqa: F401 - a fixture

from distill import add_answers
from distill.sets import hugging_face
from distill.tasks.places import decide


@pytest.mark.parametrize("views", [0, 2])
def test_maps_are_pictures_of_classes(teacher, tmp_path, monkeypatch, views):  # noqa: F811
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(hugging_face, "MOST_PICTURES", 5)  # several tables
    data = add_answers(write_set(tmp_path / "set", teacher, patches(6)), teacher, 2, runtime=RUN)
    ours = data.to_dataset(views)
    ours.to_parquet(tmp_path / "set.parquet")
    files = str(tmp_path / "set.parquet")
    read = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    logits = data.answers.tensor.flatten(0, 1) if views else data.logits
    labels = decide(logits) if views else data.labels
    for found in (ours, read):
        assert found.features["classes"].feature.names == list(NAMES)
        assert found["index"][:] == [row // max(views, 1) for row in range(len(labels))]
        for row, label in zip(found, labels, strict=True):
            assert row["label"].mode == "L" and row["image"].size == row["label"].size == (24, 16)
            assert (np.asarray(row["label"]) == label.numpy()).all()
            assert row["classes"] == label.unique().tolist()
        assert torch.equal(found.with_format("torch")["logits"][:], logits.float())
