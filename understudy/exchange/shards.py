"""What canonical shards of a feed-forward are called outside this process."""


def shard_ids(shard: int, num_shards: int, num_experts: int) -> range:
    """Return the public ids of a shard: its experts, or the shard itself for a dense model.

    Ids are what expert workers say they hold and what a placement lists.
    """
    if num_experts == 0:
        return range(shard, shard + 1)
    size = num_experts // num_shards
    return range(shard * size, (shard + 1) * size)


def whole_shards(ids: frozenset[int], num_shards: int, num_experts: int) -> frozenset[int]:
    """Return the shards all of whose ids are among `ids`."""
    return frozenset(
        shard
        for shard in range(num_shards)
        if ids.issuperset(shard_ids(shard, num_shards, num_experts))
    )
