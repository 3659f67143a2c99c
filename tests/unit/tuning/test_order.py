"""Which images each step sees."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mcip_qdrant.tuning.order import Order, StepsFrom, class_balanced

sizes = st.integers(1, 60)


@settings(deadline=None)
@given(sizes, st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_an_epoch_shows_no_image_twice_and_processes_share_it_out(size: int, batch: int, world: int, seed: int) -> None:
    orders = [Order(size, batch_size=batch, epochs=2, seed=seed, rank=rank, world_size=world) for rank in range(world)]
    steps = orders[0].steps_per_epoch
    assert orders[0].steps == 2 * steps
    seen = []
    for step in range(steps):
        parts = [order.here(step) for order in orders]
        assert [draw for part in parts for draw in part] == orders[0].everywhere(step)
        assert {len(part) for part in parts} == {orders[0].batch_size}
        seen += [draw.index for part in parts for draw in part]
    if size >= world:
        assert len(set(seen)) == len(seen)
        assert size - len(seen) < orders[0].batch_size * world  # only an incomplete batch is left out
    assert set(seen) <= set(range(size))


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    order = Order(10, batch_size=16384, epochs=1, seed=0)
    assert order.batch_size == 10
    assert sorted(draw.index for draw in order.here(0)) == list(range(10))


@settings(deadline=None)
@given(st.integers(0, 11))
def test_starting_later_is_the_rest(start: int) -> None:
    order = Order(23, batch_size=4, epochs=3, seed=1, epoch_share=0.9)
    again = Order(23, batch_size=4, epochs=3, seed=1, epoch_share=0.9)
    whole = list(StepsFrom(order, 0))
    assert len(whole) == order.steps == 15
    assert list(StepsFrom(again, start)) == whole[start:]
    assert len(StepsFrom(again, start)) == len(whole) - start


def test_epochs_and_seeds_differ() -> None:
    order, other = (Order(50, batch_size=50, epochs=2, seed=seed) for seed in (1, 2))
    first, second, foreign = order.here(0), order.here(1), other.here(0)
    assert [draw.index for draw in first] != [draw.index for draw in second]
    assert [draw.index for draw in first] != [draw.index for draw in foreign]
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}
    assert first[0].rng().random() == first[0].rng().random()


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 80), st.integers(0, 99))
def test_class_balanced_draws_every_class_equally_often(given_labels: list[int], count: int, seed: int) -> None:
    labels = np.array(given_labels, dtype=np.int64)
    drawn = class_balanced(labels, count, np.random.default_rng(seed))
    assert drawn.shape == (count,)
    per_class = [int((labels[drawn] == label).sum()) for label in np.unique(labels)]
    assert max(per_class) - min(per_class) <= 1
    for label in np.unique(labels):  # within a class the images take turns
        uses = np.bincount(drawn[labels[drawn] == label], minlength=len(labels))[labels == label]
        assert uses.max() - uses.min() <= 1
