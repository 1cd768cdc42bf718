"""What ``ipamctl import host-local`` does with the folders that it has taken over."""

from pathlib import Path

from ipamd.ctl.commands.takeover import _move_away


def test_folders_of_one_network_are_moved_away_however_soon_one_follows_another(tmp_path: Path) -> None:
    """host-local was called again between two imports and made its folder anew: both are kept, under names of their own."""
    moved = set()
    for number in range(20):
        folder = tmp_path / "networks" / "lan"
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        (folder / f"10.0.0.{number}").write_text(f"c{number}")
        moved.add(_move_away(folder))
    assert len(moved) == 20
    assert {file.name for each in moved for file in each.glob("10.*")} == {f"10.0.0.{number}" for number in range(20)}
