"""What stands on the screen while a run goes on."""

from thaw.console import Screen
from thaw.freezing.by_group import NoFreezing


def test_a_bar_goes_with_what_has_shown_it() -> None:
    """The terminal has its cursor back after a wait of its own, and a run keeps its bar through one."""
    screen = Screen(NoFreezing(), "val/accuracy")
    live = screen._progress.live
    assert [live.is_started for _ in screen.track([1, 2], 2, "features of test")] == [True, True]
    assert not live.is_started
    screen._progress.start()
    list(screen.track([1, 2], 2, "features of val"))
    assert live.is_started
    screen.on_train_end(None, None)
    assert not live.is_started
