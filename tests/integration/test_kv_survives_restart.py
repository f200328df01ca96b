"""A restarted attention worker serves a long shared prefix from the store, not by recomputing."""

from pathlib import Path

import redis

from tests.integration.processes import Processes, run_session, submit_of, wait_until
from understudy.local.ports import LOOPBACK, free_port
from understudy.local.processes import Child, child_environment
from understudy.local.services import valkey_binary
from understudy.text.tokenizer import Tokenizer

BLOCK = 16
PREFIX = "Understudy serves the small model first and the large one when it must. " * 14


def test_restarted_worker_takes_a_long_prefix_from_the_store(
    processes: Processes, smollm2: Path, tmp_path: Path
) -> None:
    port = free_port()
    listen = ("--bind", LOOPBACK, "--port", str(port))
    argv = (valkey_binary(), *listen, "--save", "", "--dir", str(tmp_path))
    valkey = Child(argv, child_environment({}), tmp_path / "valkey.log")
    try:
        kvstore = processes.start("kvstore", redis_url=f"redis://{LOOPBACK}:{port}/0")
        settings = {
            "model": str(smollm2),
            "model_name": "smollm2",
            "threads": "1",
            "block_size": str(BLOCK),
            "kvstore": kvstore.address,
            "kvstore_write_touches": "1",
            "kvstore_timeout_s": "10",
        }
        prompt = Tokenizer.from_gguf(smollm2).encode(PREFIX)
        assert len(prompt) > 10 * BLOCK
        first = processes.start("attention", **settings)
        fresh = run_session(first.address, [submit_of(1, prompt, 8)])[1]
        assert fresh.finished is not None
        assert fresh.finished.remote_cached_tokens == 0
        with redis.Redis(host=LOOPBACK, port=port) as store:
            num_chunks = len(prompt) // BLOCK - 1
            wait_until(lambda: store.dbsize() >= num_chunks, "the chunks to be stored")
        first.child.terminate()
        wait_until(lambda: first.child.exit_code() is not None, "the worker to drain")

        second = processes.start("attention", **settings)
        again = run_session(second.address, [submit_of(1, prompt, 8)])[1]
        assert again.tokens == fresh.tokens
        assert again.finished is not None
        assert again.finished.local_cached_tokens == 0
        assert again.finished.remote_cached_tokens >= len(prompt) - 2 * BLOCK
        assert again.finished.computed_positions < len(prompt) // 2
    finally:
        valkey.kill()
