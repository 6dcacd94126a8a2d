"""What a run says about its own figures."""

import numpy as np
import pytest
from scipy.stats import binom

from harness.config.automatic import DataFacts, choose_settings
from harness.config.recipe import make_config
from harness.runs import advice
from harness.runs.advice import few_updates, interval_line, missing_weights, rare_classes, unbalanced
from harness.utils.stats import chance_probability


def at_chance(split, accuracy, labels, train_accuracy, train_images=1000, steps=1000):
    return advice.at_chance(split, accuracy, labels, train_accuracy, train_images, steps)


@pytest.mark.parametrize(
    ("correct", "n", "chance"), [(0, 5, 0.5), (5, 5, 0.5), (120, 1000, 0.1), (130, 1000, 0.1), (36, 359, 0.1)]
)
def test_the_probability_of_so_many_hits_is_that_of_the_binomial_distribution(correct, n, chance):
    assert chance_probability(correct, n, chance) == pytest.approx(binom.sf(correct - 1, n, chance))


@pytest.mark.parametrize(
    ("steps", "epochs", "images", "batch_size", "remedy"),
    [
        (10, 10, 640, 512, "--batch-size, for example 32"),
        (50, 5, 80, 8, "--epochs 50"),
        (1, 1, 16, 16, "for example 8"),
    ],
)
def test_few_updates_are_named_with_a_remedy(steps, epochs, images, batch_size, remedy):
    line = few_updates(steps, epochs, images, batch_size)
    assert line.startswith(f"{steps} update") and remedy in line and "\n" not in line


def test_few_updates_that_have_sufficed_are_said_to_be_few_alone():
    line = few_updates(88, 4, 1438, 64, has_learnt=True)
    assert (
        line
        == "88 updates in all (4 epochs, batches of 64 from 1,438 images) are few; set --epochs 23 or more if the accuracy is not enough"
    )


def test_no_training_at_all_is_remarked_on():
    assert few_updates(0, 0, 640, 32).startswith("nothing is trained (epochs=0)")


@pytest.mark.parametrize("steps", [100, 5000])
def test_enough_updates_are_not_remarked_on(steps):
    assert few_updates(steps, 10, 640, 32) == ""


def test_an_accuracy_at_chance_is_told_from_one_above_it():
    labels = np.arange(1000) % 10
    assert "at chance" in at_chance("test", 0.11, labels, 0.11) and at_chance("test", 0.13, labels, 0.13) == ""


@pytest.mark.parametrize(
    ("train_accuracy", "train_images", "steps", "reason"),
    [
        (0.1, 1000, 1000, "nothing is learnt"),
        (0.13, 100, 1000, "nothing is learnt"),  # 13 of 100 are no evidence
        (0.13, 10_000, 1000, "something is learnt"),
        (0.99, 1000, 1000, "differ from the training images"),
        (0.99, 1000, 99, "few updates explain"),
    ],
)
def test_the_reason_for_an_accuracy_at_chance_follows_from_training(train_accuracy, train_images, steps, reason):
    assert reason in at_chance("test", 0.1, np.arange(1000) % 10, train_accuracy, train_images, steps)


def test_naming_the_most_frequent_class_is_chance_in_an_unbalanced_set():
    labels = np.array([0] * 900 + [1] * 100)
    assert "90.0 %" in at_chance("test", 0.9, labels, 0.9) and at_chance("test", 0.93, labels, 0.95) == ""


def test_so_few_images_that_all_could_be_hit_by_chance_are_named():
    assert "too few to tell" in at_chance("test", 1.0, np.array([0, 1]), 1.0)
    assert at_chance("test", 1.0, np.arange(10) % 2, 1.0) == ""
    assert "have one class" in at_chance("test", 1.0, np.zeros(20, int), 1.0)


def test_random_predictions_are_taken_for_better_than_chance_in_at_most_one_run_of_twenty():
    rng, labels = np.random.default_rng(0), np.arange(200) % 4
    false = sum(
        at_chance("test", float((rng.integers(0, 4, 200) == labels).mean()), labels, 0.25) == "" for _ in range(1000)
    )
    assert false <= 70


def test_a_wide_interval_and_rare_classes_are_named_and_others_are_not():
    assert "Wilson" in interval_line("test", 0.7, 20) and interval_line("test", 0.98, 360) == ""
    assert "b (1), c (0)" in rare_classes("test", np.array([0] * 9 + [1]), ["a", "b", "c"])
    assert rare_classes("test", np.arange(30) % 3, ["a", "b", "c"]) == ""


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_wide_interval_asks_for_more_images_of_its_split_and_says_that_seeds_do_not_help(split):
    line = interval_line(split, 0.42, 110)
    assert f"more {split} images narrow it" in line and "--seeds does not" in line


def test_a_class_of_a_tenth_of_the_images_of_another_is_named():
    assert "'a' has 50 training images and 'b' has 5" in unbalanced(np.array([0] * 50 + [1] * 5), ["a", "b"])
    assert "'c' has 0" in unbalanced(np.array([0] * 50 + [1] * 50), ["a", "b", "c"])
    assert unbalanced(np.array([0] * 49 + [1] * 5), ["a", "b"]) == ""


@pytest.mark.parametrize(
    ("model", "reason", "is_remarked_on"),
    [
        ("resnet18", "its pretrained weights cannot be downloaded (no answer)", True),
        ("custom_resnet", "custom_resnet has no pretrained weights", False),
    ],
)
def test_pretrained_weights_that_there_are_and_cannot_be_had_are_missed(model, reason, is_remarked_on):
    config = make_config({"recipe": "auto", "model": model})
    known = DataFacts(
        "folder", 100, ("a", "b"), 200, True, 0, lambda name: reason, lambda name: name == "custom_resnet"
    )
    choices = choose_settings(config, known)
    line = missing_weights(model, choices)
    assert bool(line) == is_remarked_on and (reason in line) == is_remarked_on
    of_weights = choose_settings(config.replace(init="weights.pth"), known)
    assert not missing_weights(model, of_weights) and not missing_weights(model, {})
