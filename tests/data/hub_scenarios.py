"""Run by test_data_hub.py in a process of its own: the real client against a loopback hub.

The client libraries read HF_ENDPOINT and HF_HOME when they are imported, hence the process. Each
scenario's outcome is printed as one JSON object; the tests judge it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

HOME = Path(sys.argv[1])


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def card(config: str, **splits: str) -> bytes:
    files = "".join(f"  - split: {k}\n    path: {v}\n" for k, v in splits.items())
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n".encode()


def repositories() -> dict[str, dict[str, dict[str, bytes]]]:
    gsm = [{"question": f"What is {n}?", "answer": f"<<1+1=2>>\n#### {n}"} for n in range(60)]
    piqa = [{"goal": f"g{n}", "sol1": "a", "sol2": "b", "label": n % 2} for n in range(40)]
    pages = [{"text": f"page {n}", "id": str(n), "score": 0.5} for n in range(30)]
    return {
        "openai/gsm8k": {
            "main": {
                "README.md": card("main", train="main/train-*", test="main/test-*"),
                "main/train-00000-of-00001.parquet": parquet(gsm),
                "main/test-00000-of-00001.parquet": parquet(gsm[:10]),
            }
        },
        "ybisk/piqa": {  # no card, only folders: how the parquet branch looks
            "refs/convert/parquet": {
                "plain_text/train/0000.parquet": parquet(piqa),
                "plain_text/validation/0000.parquet": parquet(piqa[:8]),
            }
        },
        "HuggingFaceFW/fineweb-edu": {
            "main": {
                "README.md": card("sample-10BT", train="sample/10BT/*"),
                "sample/10BT/000_00000.parquet": parquet(pages),
            }
        },
        "google/boolq": {"main": {"README.md": b"# a script", "boolq.py": b"raise SystemExit"}},
        "Salesforce/wikitext": {
            "main": {
                "README.md": card("wikitext-2-raw-v1", train="w/train-*"),
                "w/train-0.parquet": parquet([{"text": "one split only"}]),
            }
        },
        "ucinlp/drop": {
            "main": {
                "README.md": card("default", train="data/train-*", validation="data/val-*"),
                "data/train-0.parquet": parquet([{"passage": "p", "query": "q"}]),
                "data/val-0.parquet": parquet([{"passage": "p", "query": "q"}]),
            }
        },
        "google-research-datasets/mbpp": {"main": {"README.md": card("full", train="full/t-*")}},
        "openai-community/gpt2": {"main": {"tokenizer.json": b'{"model": {}}'}},
        "Rowan/hellaswag": {"main": {"README.md": card("default", train="data/train-*")}},
    }


def main() -> None:
    from loopback_hub import LoopbackHub

    out: dict[str, Any] = {}
    with LoopbackHub(repositories()) as hub:
        os.environ.update(
            HF_ENDPOINT=hub.url, HF_HOME=str(HOME / "hf"), HF_UPDATE_DOWNLOAD_COUNTS="0"
        )
        os.environ.pop("HF_HUB_OFFLINE", None)
        from huggingface_hub import constants

        from agentforge.config.schema import DataConfig
        from agentforge.data import hub as ours
        from agentforge.data import hub_mode, sources
        from agentforge.data import tokenizers as ours_tokenizers
        from agentforge.data.fetch import fetch_datasets
        from agentforge.data.inventory import check_data
        from agentforge.errors import DataError

        def load(*names: str, **settings: Any) -> dict[str, Any]:
            before = len(hub.requests)
            config = DataConfig(source="records", datasets=names, **settings)
            told: dict[str, Any] = {"loaded": {}, "missing": {}, "error": ""}
            try:
                inventory = sources.load_datasets(config)
            except DataError as error:
                told["error"] = str(error)
            else:
                for part in inventory.loaded:
                    told["loaded"][part.entry.name] = {
                        "found": part.found,
                        "where": part.where,
                        "records": part.records,
                        "skipped": dict(part.skipped),
                        "sizes": {k: len(v) for k, v in part.examples.items()},
                        "first": part.examples["train"][0].answer,
                    }
                told["missing"] = {m.entry.name: m.reason for m in inventory.missing}
            told["requests"] = hub.requests[before:]
            told["offline after"] = constants.HF_HUB_OFFLINE
            return told

        def tokenizer() -> str:
            try:
                return ours_tokenizers.load_gpt2(None, None).name
            except DataError as error:
                return str(error)

        usual = ("gsm8k", "piqa", "fineweb_edu", "svamp")
        out["fresh"] = load(*usual)
        out["capped"] = load("fineweb_edu", max_records=7)
        out["script"] = load("gsm8k", "boolq")
        out["no such split"] = load("gsm8k", "wikitext")
        out["no files"] = load("gsm8k", "hellaswag")
        out["wrong column"] = load("drop")

        folder = HOME / "fetched"
        results = fetch_datasets(("gsm8k", "fineweb_edu", "svamp"), folder)
        out["fetch"] = [(r.name, r.status, r.records, r.problem) for r in results]
        out["fetched files"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.jsonl"))
        out["fetched row"] = json.loads((folder / "gsm8k/train.jsonl").read_text().splitlines()[3])
        before = len(hub.requests)
        again = fetch_datasets(("gsm8k", "fineweb_edu"), folder)
        out["fetch again"] = [(r.name, r.status) for r in again]
        out["fetch again requests"] = hub.requests[before:]
        out["from fetched"] = load("gsm8k", "fineweb_edu", data_dir=str(folder))

        rows = check_data(DataConfig(source="records", datasets=usual))
        out["check"] = {r.name: (r.status, r.chosen, r.records, r.problem) for r in rows}

        ours_tokenizers._package_folder = lambda: None
        out["tokenizer"] = tokenizer()

        # A hub whose interface answers but whose files never come.
        hub_mode.READ_TIMEOUT_S, hub_mode.UNANSWERED = 0.3, 2
        hub.hang = "/datasets/"
        out["silent files"] = load("gsm8k", "mbpp", "fineweb_edu")
        # A hub that accepts a connection and never says anything.
        ours.PROBE_TIMEOUT_S = 0.3
        hub.hang = "/"
        out["silent"] = load(*usual)
        hub.released.set()
    # No hub at all: the port is closed now.
    out["closed"] = load(*usual)
    out["closed, nothing"] = load("boolq", "hellaswag")
    shutil.rmtree(HOME / "hf" / "hub")
    out["tokenizer closed"] = tokenizer()
    try:
        fetch_datasets(("drop",), HOME / "fetched")
    except DataError as error:
        out["fetch closed"] = str(error)
    print(json.dumps(out))  # noqa: T201 - this is how the test reads it


if __name__ == "__main__":
    main()
