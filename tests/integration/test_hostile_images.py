"""Images that grow, that never end or that are none: each costs the checkpoint that asks for it."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fuzz.bombs import chunk
from tests.integration.commands import modcap_command
from tests.integration.test_hostile_scan import deflated, images_bomb
from tests.integration.test_scan import POLICY, safetensors, states
from tests.integration.test_scan import s3 as s3

HEAD = b"\x89PNG\r\n\x1a\n"
ROW = zlib.compress(bytes(29 * 28))


def png(width: int, height: int, *parts: tuple[bytes, bytes]) -> bytes:
    """A grey image that declares these sides."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    return HEAD + b"".join(chunk(*each) for each in ((b"IHDR", header), *parts, (b"IEND", b"")))


def inflating(megabytes: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


SMALL = "resize=64,crop=28,mean=0.5,std=0.5"


def pictures() -> dict[str, bytes]:
    bomb = inflating(300)
    return {
        "long": png(60_000, 1, (b"IDAT", zlib.compress(bytes(60_001)))),
        "wide": png(2**31 - 1, 2**31 - 1, (b"IDAT", ROW)),
        "text": png(28, 28, (b"zTXt", b"x\0\0" + bomb), (b"IDAT", ROW)),
        "profile": png(28, 28, (b"iCCP", b"x\0\0" + bomb), (b"IDAT", ROW)),
        "short": png(28, 28),
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    }


@pytest.mark.timeout(400)
def test_images_of_a_rule_cost_the_checkpoints_that_need_them(
    stack: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    bucket, prefix = stack["MODCAP_BUCKET"], "incoming/pictures"
    (rule,) = POLICY["rules"]
    rules: list[dict[str, Any]] = []

    def put(name: str, data: Path) -> None:
        s3.put_object(
            Bucket=bucket, Key=f"{prefix}/{name}.safetensors", Body=safetensors(len(rules))
        )
        rules.append(
            rule
            | {
                "match": f"{name}.*",
                "data": str(data),
                "preprocess": SMALL,
            }
        )

    contents = pictures()
    for name, content in contents.items():
        folder = tmp_path / name / "bag"
        folder.mkdir(parents=True)
        for number in range(40):  # enough for calibration
            (folder / f"a{number}.png").write_bytes(content)
        put(f"picture-{name}", folder.parent)
    arrays = {"honest": images_bomb(3 << 30), "silent": deflated("images.npy", 1 << 30)}
    for name, content in arrays.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        put(f"picture-{name}", tmp_path / f"{name}.npz")
    (tmp_path / "fifo" / "bag").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo" / "bag" / "a.png")
    put("picture-fifo", tmp_path / "fifo")
    os.mkfifo(tmp_path / "pipe.npz")
    put("picture-pipe", tmp_path / "pipe.npz")
    s3.put_object(Bucket=bucket, Key=f"{prefix}/good.safetensors", Body=safetensors(99))
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.dump(POLICY | {"rules": [*rules, rule]}))

    arguments = ["scan", "--json", f"s3://{bucket}/{prefix}", "--policy", str(policy)]
    limits = {"MODCAP_ISOLATED_GIB": "2", "MODCAP_ISOLATED_SECONDS": "60"}
    done = modcap_command(stack, *arguments, MODCAP_PREFIX="pictures", **limits)
    assert done.returncode == 1, done.stderr  # the images of a policy may be mended
    report = json.loads(done.stdout)
    reasons = {row["checkpoint"].rsplit("/", 1)[1]: row["reason"] for row in report["checkpoints"]}
    found = states(report)
    assert found.pop("good.safetensors") == "registered"
    assert set(found.values()) == {"failed"}, reasons
    for name in (*contents, "fifo"):
        reason = reasons[f"picture-{name}.safetensors"]
        assert "\n" not in reason
        assert ".png" in reason, reason
    assert "no regular file" in reasons["picture-pipe.safetensors"]
