import threading
import time

import pytest

from glc.data.deadline import Watch, attempt


def test_attempts_run_at_the_same_time_and_none_outlasts_the_limit():
    never = threading.Event()

    def fails(watch):
        raise OSError("refused")

    def slow(watch):
        watch.note(True)
        never.wait(30)

    started = time.monotonic()
    done, failed, working, dead = attempt(
        [lambda watch: time.sleep(0.2), fails, slow, lambda watch: never.wait(30)], 0.4
    )
    assert 0.4 <= time.monotonic() - started < 1
    assert [watch.done.is_set() for watch in (done, failed, working, dead)] == [True, True, False, False]
    assert str(failed.error) == "refused"
    assert [watch.alive for watch in (done, working, dead)] == [False, True, False]
    never.set()


def test_without_a_limit_all_are_awaited():
    (watch,) = attempt([lambda watch: time.sleep(0.3)], None)
    assert watch.done.is_set()


def test_nobody_reads_on_after_the_end():
    stopped = []
    watch = Watch()
    watch.on_stop(lambda: stopped.append(True))
    watch.note(True)
    watch.stop()
    assert stopped == [True]
    with pytest.raises(TimeoutError):
        watch.note(True)
