"""Images that a page shows because they stand out, in a set and beside real ones."""

import numpy as np
import pytest
import torch
from test_pages import write_set
from test_reports import pictures

from distill import TransferSet
from inversion.pages.extremes import extremes, nearest_real
from inversion.pages.gallery import thumbnail
from inversion.pages.judged_sections import judged_part
from inversion.pages.judging import judge
from inversion.pages.report import write_report


def test_the_hardest_the_surest_and_the_most_alike_are_found():
    images = pictures(6)
    images[4] = images[1] // 2
    logits = torch.tensor([[9, 0, 0], [1, 0, 0], [0, 5, 0], [0, 9, 0], [0, 0, 3], [0, 0, 2.0]])
    labels = logits.argmax(1)
    manifest = {"input": {"task": "classification"}}
    more = (torch.ones(6), torch.zeros(6).int(), manifest)
    found = extremes(TransferSet(images, labels, logits.half(), *more))
    assert found.hardest[0].lines == ["0", "57.6%"]
    assert [picture.lines[0] for picture in found.surest] == ["0", "1", "2"]
    pair, likeness = found.alike[0]
    assert [picture.lines for picture in pair] == [["0"], ["2"]] and likeness in ("0.999", "1.000")
    shown = [picture.png for pair, _ in found.alike for picture in pair]
    assert len(shown) >= 4 and len(shown) == len(set(shown))


def test_the_real_images_nearest_to_a_set_are_shown_beside_it(tmp_path):
    made = TransferSet.load(write_set(tmp_path, torch.tensor([0, 1, 2])))
    real = torch.cat([pictures(4), made.images[1:2], 255 - made.images[2:3]])
    found = nearest_real(made, real, "photographs")
    # The only one that is there, be it lighter, comes first; its opposite is no neighbour.
    assert found["pairs"][0]["correlation"] == 1 and found["pairs"][0]["class"] == "1"
    assert found["pairs"][0]["png"] == found["pairs"][0]["real"] == thumbnail(real[4].numpy())
    flat = torch.cat([made.images, real]).flatten(1).double().numpy()
    table = np.corrcoef(flat)[:3, 3:]
    likeness = sorted((pair["correlation"] for pair in found["pairs"]), reverse=True)
    assert likeness == pytest.approx(sorted(table.max(1), reverse=True), abs=6e-4)
    assert found["median"] == pytest.approx(np.median(table.max(1)), abs=6e-4)

    document = judge(real, torch.zeros(6).long(), torch.zeros(6).long(), 3)
    part = judged_part(document | {"nearest": found})
    assert part.nearest[0][1] == "1.000" and "6 images: photographs" in part.nearest_note
    assert "only judged" in part.nearest_note and not judged_part(document).nearest


@pytest.mark.parametrize("count", [1, 2])
def test_a_set_of_one_or_two_images_has_a_page(count, tmp_path):
    page = write_report(write_set(tmp_path, torch.arange(count))).read_text()
    assert ("The most alike" in page) == (count == 2)
