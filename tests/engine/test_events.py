"""Events: order, history, and subscribers that don't keep up."""

from __future__ import annotations

import threading

from tiffin.engine import events as module
from tiffin.engine.events import Events


def test_history_comes_before_what_happens_now_and_nothing_comes_twice() -> None:
    events = Events()
    for number in range(5):
        events.publish("container", "start", str(number))
    with events.subscribe(0) as subscriber:
        events.publish("container", "die", "5")
        seen = [subscriber.get_nowait() for _ in range(6)]
        assert subscriber.empty()
    assert [event["Actor"]["ID"] for event in seen if event] == list("012345")
    times = [event["timeNano"] for event in seen if event]
    assert times == sorted(times)


def test_many_threads_publish_in_one_order() -> None:
    events = Events()
    with events.subscribe() as one, events.subscribe() as two:
        threads = [
            threading.Thread(
                target=lambda: [events.publish("volume", "create", "x") for _ in range(1000)]
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first = [one.get_nowait() for _ in range(8000)]
        assert first == [two.get_nowait() for _ in range(8000)]
        times = [event["timeNano"] for event in first if event]
        assert times == sorted(set(times))


def test_a_subscriber_that_stops_reading_is_given_up_and_disturbs_nobody() -> None:
    events = Events()
    with events.subscribe() as stalled, events.subscribe() as reading:
        for number in range(module.BACKLOG + 10):
            events.publish("container", "start", str(number))
            assert reading.get_nowait() is not None
        assert stalled.qsize() <= module.BACKLOG + 2
        last = None
        while not stalled.empty():
            last = stalled.get_nowait()
            if last is None:
                break
        assert last is None
