"""A small world of drawn pictures whose captions name less than the pictures show: see docs/small-world.md."""
