"""Folders of classes, in splits or alone."""

import pytest
from writing import GREY, write_pictures

from distill import load_images
from synthesis_kernels.errors import EchosetError


def test_class_folders_must_be_full_and_alone(tmp_path):
    for name in "bc":
        write_pictures(tmp_path / name, GREY)
    (tmp_path / "a").mkdir()
    with pytest.raises(EchosetError, match="a is a class without pictures"):
        load_images(tmp_path)
    (tmp_path / "a").rmdir()
    write_pictures(tmp_path, GREY)
    with pytest.raises(EchosetError, match=r"0\.png lies beside folders of classes"):
        load_images(tmp_path)


def test_a_class_that_a_split_lacks_moves_no_other_up(tmp_path):
    """The train split says which classes there are."""
    for name in "abc":
        write_pictures(tmp_path / "train" / name, GREY)
    write_pictures(tmp_path / "test" / "c", GREY)
    for root in (tmp_path, tmp_path / "test"):
        assert load_images(root, "test").labels.tolist() == [2]
    (tmp_path / "test" / "b").mkdir()
    assert load_images(tmp_path, "test").labels.tolist() == [2]
    assert load_images(tmp_path, "train").labels.tolist() == [0, 1, 2]
    write_pictures(tmp_path / "test" / "d", GREY)
    with pytest.raises(EchosetError, match=r"train lacks the class 'd' of .*test, which lacks 'a'"):
        load_images(tmp_path, "test")
    for name in "ab":
        write_pictures(tmp_path / "test" / name, GREY)
    assert load_images(tmp_path, "test").labels.tolist() == [
        0,
        1,
        2,
        3,
    ]  # a train split with a part of the classes


def test_another_layout_beside_a_split_says_nothing_about_its_classes(tmp_path):
    write_pictures(tmp_path / "train" / "images", GREY)
    (tmp_path / "train" / "annotations").mkdir()
    for name in "ab":
        write_pictures(tmp_path / "test" / name, GREY)
    assert load_images(tmp_path, "test").labels.tolist() == [0, 1]


def test_a_class_without_pictures_in_any_split_is_refused_and_links_and_dots_are_followed(
    tmp_path, monkeypatch
):
    for name in "abc":
        write_pictures(tmp_path / "root" / "train" / name, GREY)
    write_pictures(tmp_path / "elsewhere" / "c", GREY)
    (tmp_path / "root" / "test").symlink_to(tmp_path / "elsewhere")
    assert load_images(tmp_path / "root", "test").labels.tolist() == [2]
    monkeypatch.chdir(tmp_path / "root" / "train")
    assert load_images("../test", "test").labels.tolist() == [2]
    (tmp_path / "root" / "train" / "b" / "0.png").unlink()
    with pytest.raises(EchosetError, match="b is a class without pictures"):
        load_images(tmp_path / "root", "test")


def test_a_class_called_train_is_no_split(tmp_path):
    for name in ("train", "tractor"):
        write_pictures(tmp_path / name, GREY)
    for split in ("train", "test"):
        with pytest.raises(EchosetError, match="is 'train' what to train or test with, or a class"):
            load_images(tmp_path, split)
    assert len(load_images(tmp_path, "train", labelled=False)) == 1  # where no class counts
    write_pictures(
        tmp_path / "test", GREY
    )  # beside one another they are splits, whatever else is there
    assert len(load_images(tmp_path, "train")) == len(load_images(tmp_path / "tractor"))


def test_a_folder_of_other_splits_is_not_one_class(tmp_path):
    write_pictures(tmp_path / "train" / "a", GREY)
    with pytest.raises(EchosetError, match="has no folder 'test', but train"):
        load_images(tmp_path)
