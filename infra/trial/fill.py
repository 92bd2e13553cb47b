"""Fills a bucket with small pictures, to have something to build: `fill.py s3://trial/images 400`.

The same pictures each time. The bucket is made if it is not there. It waits for the store to start.
"""

from __future__ import annotations

import io
import os
import sys
import time

import botocore.session
import numpy as np
from botocore.exceptions import ClientError, EndpointConnectionError
from PIL import Image

START_SECONDS = 60


def picture(seed: int) -> bytes:
    """Returns a JPEG of 96 x 96 pixels of soft colours."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(rough).resize((96, 96), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def fill(prefix: str, count: int) -> None:
    bucket, _, folder = prefix.removeprefix("s3://").partition("/")
    region = os.environ.get("AWS_REGION", "us-east-1")
    client = botocore.session.get_session().create_client("s3", region_name=region)
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            client.create_bucket(Bucket=bucket)
            break
        except EndpointConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
        except ClientError as error:
            if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise
            break
    for seed in range(count):
        client.put_object(Bucket=bucket, Key=f"{folder}/{seed:06d}.jpg", Body=picture(seed))
    print(f"{count} pictures are below {prefix}")


if __name__ == "__main__":
    fill(sys.argv[1], int(sys.argv[2]))
