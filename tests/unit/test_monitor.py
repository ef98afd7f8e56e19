"""What a worker tells of itself while it works."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from paceline.training.monitor import Monitor


def test_a_beat_tells_where_the_main_thread_is_whoever_sends_it() -> None:
    monitor = Monitor()
    with ThreadPoolExecutor(1) as other, monitor.doing("compute"):
        beat = other.submit(monitor.beat).result()
    assert "test_a_beat_tells_where_the_main_thread_is" in beat.stack
    assert "_stack" not in beat.stack
    assert beat.phase == "compute"
