"""Simulated predictions of networks, for tests of statistics and of verdicts."""

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binom


def simulate_arms(random, gains, seeds, images, effect, together=0.0):
    """Return bool ``[seeds, images]`` of each arm: which images it classifies correctly.

    Most images are easy, a few are hard, and not the same ones for all arms.

    Args:
        random: random generator.
        gains: how much better each arm is, in logits.
        seeds: number of seeds of each arm.
        images: number of images.
        effect: standard deviation of a seed's own gain; one for all arms, or one each.
        together: share of the seeds' variance that equal seeds have in common.
    """
    ease, common = random.normal(3.5, 3, images), random.normal(size=(max(seeds), 1))
    effects = np.broadcast_to(effect, len(seeds))

    def arm(gain, count, size):
        own = random.normal(size=(count, 1))
        of_seeds = size * (together**0.5 * common[:count] + (1 - together) ** 0.5 * own)
        logits = (
            ease
            + gain
            + random.normal(0, 0.7, images)
            + of_seeds
            + random.normal(0, 1, (count, images))
        )
        return random.random((count, images)) < expit(logits)

    return [arm(*one) for one in zip(gains, seeds, effects, strict=True)]


def simulate_logits(random, gains, seeds, images, effect=0.0, classes=3):
    """Return labels ``[images]``, and logits ``[seeds, images, classes]`` of each arm.

    The lead of the true class is the sum of the ease of the image, the arm's gain, and the seed's
    own gain, whose standard deviation is ``effect``.
    """
    labels, ease = random.integers(0, classes, images), random.normal(1.5, 1, images)

    def arm(gain, count):
        logits = random.normal(0, 0.7, (1, images, classes)) + random.normal(
            0, 0.7, (count, images, classes)
        )
        logits[:, np.arange(images), labels] += (
            ease + gain + effect * random.normal(size=(count, 1))
        )
        return logits

    return labels, [arm(*one) for one in zip(gains, seeds, strict=True)]


def max_by_chance(trials, level):
    """Return the number of ``trials`` that a rate of ``level`` exceeds once in a thousand times."""
    return binom.ppf(0.999, trials, level)


IMAGES = 540


def draw_correct(share, seed=0):
    """Return bool ``[images]``, true for a share of the images.

    The images are the same for the same seed, and nearly the same for other seeds.
    """
    ease = np.random.default_rng(99).random(IMAGES) + np.random.default_rng(seed).normal(
        0, 0.02, IMAGES
    )
    return ease < share


def find_pair(result, *names):
    return next(pair for pair in result["pairs"] if {pair["a"], pair["b"]} == set(names))


def make_table(labels, logits, split="val"):
    """Return predictions for images named ``0.png`` and so on."""
    ids = [f"{number}.png" for number in range(len(logits))]
    logits = [np.asarray(row, dtype=float) for row in logits]
    return pd.DataFrame({"id": ids, "split": split, "label": labels, "logits": logits})
