"""Names, labels and category ids belong together."""

import pytest

from detkit.datasets import LabelMap


def test_all_categories_in_ascending_id_order():
    label_map = LabelMap.match({"owl": 90, "cat": 7, "dog": 8}, None, "ann.json")
    assert label_map == LabelMap(("cat", "dog", "owl"), (7, 8, 90))


def test_a_list_of_names_sets_the_order():
    label_map = LabelMap.match({"owl": 90, "cat": 7, "dog": 8}, ["dog", "owl"], "ann.json")
    assert label_map == LabelMap(("dog", "owl"), (8, 90))


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    message = r"'dgo' is not a category of ann\.json; did you mean 'dog' or .*\? The file has: cat, dog, owl"
    with pytest.raises(ValueError, match=message):
        LabelMap.match({"owl": 90, "cat": 7, "dog": 8}, ["cat", "dgo"], "ann.json")


@pytest.mark.parametrize("classes", ["cat", [1], ["cat", None]])
def test_classes_must_be_names(classes):
    with pytest.raises(TypeError, match="a list of class names was expected"):
        LabelMap.match({"cat": 7}, classes, "ann.json")


def test_plain_types_there_and_back():
    label_map = LabelMap(("cat", "dog"), (7, 3))
    assert label_map.to_dict() == {"classes": ["cat", "dog"], "category_ids": [7, 3]}
    assert LabelMap.from_dict(label_map.to_dict()) == label_map


@pytest.mark.parametrize(
    ("classes", "category_ids", "message"),
    [
        (("cat",), (1, 2), "1 class names but 2 category ids"),
        (("cat", "cat"), (1, 2), "the class name 'cat' occurs more than once"),
        (("cat", "dog"), (1, 1), "the category id 1 occurs more than once"),
    ],
)
def test_an_ambiguous_map_is_refused(classes, category_ids, message):
    with pytest.raises(ValueError, match=message):
        LabelMap(classes, category_ids)
