import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptive import ring

LENGTH = 8
push, advance = jax.jit(ring.push), jax.jit(ring.advance)
last = jax.jit(ring.last, static_argnums=2)


# Two of the starts lie just before the counter wraps, one of them at no multiple of the length.
@pytest.mark.parametrize("start", [-1, 2, 2 * ring.WRAP - 9, 2 * ring.WRAP - 21])
def test_the_newest_rows_equal_the_end_of_a_plain_list_wherever_the_counter_wraps(start):
    buffer, count, plain = ring.init(LENGTH, 3), jnp.int32(start), []
    view = ring.Ring(buffer.rows, jnp.int32(0))
    rng = np.random.default_rng(0)
    for _ in range(3 * LENGTH):
        new = rng.normal(size=3).astype(np.float32)
        count = advance(count)
        view = push(view, count, new)
        plain.append(new)
        for rows in (1, 5, LENGTH):
            wanted = np.array(plain[-rows:])
            got = np.asarray(last(view, count, rows))[-len(wanted) :]
            np.testing.assert_array_equal(got, wanted)


def test_the_counter_wraps_without_moving_a_row_and_stays_late():
    newest = jnp.int32(2 * ring.WRAP - 1)
    after = int(advance(newest))
    assert after < int(newest)
    assert after % LENGTH == (int(newest) + 1) % LENGTH
    assert after % ring.WRAP == (int(newest) + 1) % ring.WRAP
    # Still more than any number of samples that is compared with: nothing looks unseen.
    assert after >= ring.WRAP
    assert [int(advance(jnp.int32(n))) for n in (-1, 0, 41)] == [0, 1, 42]


def test_streams_of_a_bank_do_not_touch_each_other():
    rows = jnp.zeros((3, 2, LENGTH, 2, 2), jnp.float32)
    rng, plain, count = np.random.default_rng(1), [[], [], []], [-1, -1, -1]
    for stream in rng.integers(0, 3, 60):
        new = rng.normal(size=(2, 2)).astype(np.float32)
        count[stream] += 1
        view = push(ring.Ring(rows, jnp.int32(stream)), jnp.int32(count[stream]), new)
        rows = view.rows
        plain[stream].append(new)
    assert min(map(len, plain)) > LENGTH
    for stream in range(3):
        view = ring.Ring(rows, jnp.int32(stream))
        got = last(view, jnp.int32(count[stream]), LENGTH)
        np.testing.assert_array_equal(got, plain[stream][-LENGTH:])


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 4096, 4097])
def test_a_ring_is_the_shortest_power_of_two_that_holds_what_was_asked_for(rows):
    length = ring.length_for(rows)
    assert ring.init(rows, 1).rows.shape == (1, 2, length, 1)
    assert length == max(2, 2 ** int(np.ceil(np.log2(rows))))
    assert ring.WRAP % length == 0


def test_more_rows_than_there_are_cannot_be_read():
    with pytest.raises(ValueError, match="holds 8 rows, 9"):
        ring.last(ring.init(LENGTH), jnp.int32(0), 9)


def test_a_ring_of_many_streams_cannot_be_read_without_saying_which():
    rows = jnp.zeros((2, 2, LENGTH), jnp.float32)
    with pytest.raises(ValueError, match="2 streams"):
        ring.last(ring.Ring(rows), jnp.int32(0), 1)


@pytest.mark.parametrize("start", [-1, 2 * ring.WRAP - 69])
def test_a_ring_by_phase_holds_the_same_by_phase_and_nan_where_nothing_was(start):
    length = 4 * ring.PHASES
    many = jnp.repeat(ring.init_by_phase(length, 3).rows, 2, axis=0)
    view = ring.Ring(many, jnp.int32(1), by_phase=True)
    assert view.length == length
    by_phase = jax.jit(ring.last_by_phase, static_argnums=2)
    count, plain, rng = jnp.int32(start), [], np.random.default_rng(0)
    for n in range(2 * length + 5):
        new = rng.normal(size=3).astype(np.float32)
        count = advance(count)
        view = push(view, count, new)
        plain.append(new)
        if n % 7:
            continue
        wanted = np.full((length, 3), np.nan)
        wanted[max(length - len(plain), 0) :] = plain[-length:]
        np.testing.assert_array_equal(last(view, count, length), wanted)
        for rows in (ring.PHASES, length):
            # Phase j of the last column is j samples ago, columns are `PHASES` samples apart.
            turned = wanted[-rows:].reshape(-1, ring.PHASES, 3)[:, ::-1].transpose(2, 1, 0)
            np.testing.assert_array_equal(by_phase(view, count, rows), turned)
    numbers = count - jnp.array([0, 4, 2])
    got = jax.jit(ring.read)(view, numbers)
    np.testing.assert_array_equal(got, [plain[-1], plain[-5], plain[-3]])
    np.testing.assert_array_equal(jax.jit(ring.read)(view, count), plain[-1])
    assert np.isnan(view.rows[0]).all()


def test_a_ring_of_one_copy_has_single_rows_in_its_own_precision_and_no_slices():
    buffer = ring.init(LENGTH, 2, copies=1, dtype=jnp.float16)
    for n in range(20):
        buffer = push(buffer, jnp.int32(n), jnp.array([n, 0.5 * n], jnp.float32))
    assert buffer.rows.dtype == jnp.float16
    row = int(ring.row(buffer, jnp.int32(15)))
    np.testing.assert_array_equal(buffer.rows[0, :, row], [[15.0, 7.5]])
    with pytest.raises(ValueError, match="one copy"):
        last(buffer, jnp.int32(19), 2)
