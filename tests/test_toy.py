import pytest

from inversion.toy import SIZE, draw_picture, main, run


@pytest.fixture(scope="module")
def result():
    return run(seed=0)


@pytest.fixture(scope="module")
def short():
    return run(seed=1, calls=7, steps=5)


def test_the_set_teaches_nearly_what_the_teacher_knows(result):
    accuracy = result.accuracy
    assert accuracy["the set"] > accuracy["teacher"] - 5
    assert accuracy["the set"] > accuracy["uniform noise"] + 3


def test_sets_are_of_one_size_and_the_set_is_balanced(result):
    sets = {name: counts for name, counts in result.counts.items() if name != "teacher"}
    assert {sum(counts) for counts in sets.values()} == {SIZE}
    assert max(sets["the set"]) - min(sets["the set"]) <= 1


def test_the_same_seed_gives_the_same_numbers(short):
    again = run(seed=1, calls=7, steps=5)
    assert short.accuracy == again.accuracy
    assert short.history[-1].equal(again.history[-1])


def test_the_command_draws(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("inversion.toy.run", lambda seed: result)
    picture = tmp_path / "new" / "toy.png"
    assert main([f"--out={picture}"]) == 0
    assert 10_000 < picture.stat().st_size < 150_000
    assert f"{result.accuracy['the set']:.2f} %" in capsys.readouterr().out


def test_a_picture_drawn_from_few_calls(short, tmp_path):
    draw_picture(short, tmp_path / "toy.svg")
    assert (tmp_path / "toy.svg").stat().st_size


def test_an_unknown_kind_of_picture_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--out=toy.jpeg2"])
    assert ".png, .svg or .pdf" in capsys.readouterr().err
