"""Files that are copied beside a package, where no other code of ours is: torch alone is there."""
