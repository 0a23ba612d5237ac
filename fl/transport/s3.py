"""Models through an S3 bucket: Amazon's, or any compatible store's.

Only the server holds keys. Sites get pre-signed URLs: one to read the model by, which its reference
carries, and with every task a grant to put one object, in parts. They speak plain HTTPS, outwards,
through their proxy where the environment names one. Both sides move parts side by side, and try
each again that fails or arrives cut short.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import csv
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape  # nosec B406  (writes, parses nothing)

import requests

from fl.config import S3Configs
from fl.tensors import Data, size
from fl.transport.base import (
    NoPlaceError,
    Ref,
    TransportError,
    UnreachableError,
    ref_to,
    wrong_way,
)
from fl.transport.parts import (
    PART_BYTES,
    TIMEOUT,
    TRIES,
    VALID_SECONDS,
    Parts,
    is_final,
)

NAME = "s3"
OBJECT = re.compile(r"fl/[0-9a-f]{32}")
MOST_PARTS = 256
"""So that a grant stays a small part of a task; S3 itself takes 10,000."""
REFUSALS = {403: "have the keys changed, or is the URL over a week old?"}


class SignedS3:
    """A site's side: URLs and no keys.

    Args:
        grant: What the server's `S3Transport.grant` gave, to put one object.
    """

    name = NAME
    limit: int | None = None

    def __init__(self, grant: Mapping[str, Any]) -> None:
        self._grant = grant
        self._parts = Parts("S3", REFUSALS)

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`; the object is there once all its parts are."""
        grant = self._grant
        key = {"object": grant["object"], "url": grant["get"]}
        try:
            answers, digest = self._parts.put(grant["parts"], pieces, grant["part_bytes"])
            self._parts.ask("POST", grant["complete"], _completion(answers))
        except NoPlaceError as error:
            # The store has heard an earlier try, whose answer was lost, and forgotten the upload.
            ref = ref_to(self.name, key, pieces)
            try:
                self.read(ref, grant["get"])
            except UnreachableError:
                raise
            except TransportError:  # of a key that is not there S3 may say 403, not 404
                raise error from None
            return ref
        return Ref(self.name, key, size(pieces), digest)

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`."""
        if ref.transport != self.name or "url" not in ref.key:
            raise wrong_way(ref, self.name)
        return self.read(ref, ref.key["url"], seconds)

    def read(self, ref: Ref, url: str, seconds: float = math.inf) -> Data:
        """What is at a URL, in ranges.

        Args:
            ref: Its reference.
            url: Where it is.
            seconds: As for `Transport.get`.

        Returns:
            The bytes.

        Raises:
            TransportError: They are gone, out of reach, or not what the reference says.
        """
        places = ((url, begin) for begin in range(0, ref.size, PART_BYTES))
        return self._parts.read(ref, places, seconds)

    def close(self) -> None:
        """Close connections."""
        self._parts.close()


class S3Transport:
    """The server's side: it holds the keys, and grants.

    Args:
        configs: Bucket, endpoint and keys.

    Raises:
        TransportError: The keys cannot be read, or the bucket cannot be used with them.
    """

    name = NAME
    limit: int | None = None

    def __init__(self, configs: S3Configs) -> None:
        import boto3  # at the server alone, where S3 is the way: half a second
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        self._errors = (BotoCoreError, ClientError)
        self._bucket = configs.s3_bucket
        self._uploads: dict[str, str] = {}
        try:
            self._client = boto3.client(
                "s3",
                endpoint_url=configs.s3_endpoint_url,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=TIMEOUT[0],
                    read_timeout=TIMEOUT[1],
                    retries={"mode": "standard", "total_max_attempts": TRIES},
                    s3={"addressing_style": "path" if configs.s3_endpoint_url else "auto"},
                ),
                **_keys(configs),
            )
        except (*self._errors, ValueError) as error:  # which an endpoint's URL may be
            raise TransportError(f"S3 cannot be used: {error}") from error
        self._call("head_bucket")

    def put(self, *pieces: Data) -> Ref:
        """See `Transport.put`."""
        grant = self.grant(size(pieces))
        site = SignedS3(grant)
        try:
            return site.put(*pieces)
        except TransportError:
            with suppress(TransportError):
                self._remove(grant["object"])
            raise
        finally:
            site.close()

    def get(self, ref: Ref, seconds: float = math.inf) -> Data:
        """See `Transport.get`; a URL in the reference is not used: a site may have written it."""
        site = SignedS3({})
        try:
            return site.read(ref, self._signed("get_object", Key=self._object(ref)), seconds)
        finally:
            site.close()

    def evict(self, ref: Ref) -> None:
        """See `Transport.evict`."""
        self._remove(self._object(ref))

    def grant(self, size: int | None) -> dict[str, Any]:
        """See `Transport.grant`: URLs for the parts, and for what follows them.

        Args:
            size: The most bytes that will be put, or None.

        Returns:
            JSON types.

        Raises:
            TransportError: The store refuses, or is out of reach.
        """
        if size is None:
            return {"transport": self.name}
        part_bytes = max(PART_BYTES, math.ceil(size / MOST_PARTS))
        name = f"fl/{uuid.uuid4().hex}"
        upload = self._call("create_multipart_upload", Key=name)["UploadId"]
        self._uploads[name] = upload
        return {
            "transport": self.name,
            "object": name,
            "part_bytes": part_bytes,
            "parts": [
                self._signed("upload_part", Key=name, UploadId=upload, PartNumber=number)
                for number in range(1, max(1, math.ceil(size / part_bytes)) + 1)
            ],
            "complete": self._signed("complete_multipart_upload", Key=name, UploadId=upload),
            "get": self._signed("get_object", Key=name),
        }

    def close(self) -> None:
        """Take back what was granted and never evicted: tasks that were lost may have put it."""
        with suppress(UnreachableError):  # each of the rest would be waited for as long: it is left
            for name in list(self._uploads):
                with _let_be_refused():
                    self._remove(name)
        self._client.close()

    def _remove(self, name: str) -> None:
        """End an object's upload, whose parts would live on unseen, and whatever came of it."""
        upload = self._uploads.get(name)
        if upload is not None:
            with _let_be_refused():  # one that was completed is no upload any more
                self._call("abort_multipart_upload", Key=name, UploadId=upload)
        self._call("delete_object", Key=name)
        self._uploads.pop(name, None)

    def _object(self, ref: Ref) -> str:
        """An object's name: one of ours, whatever a site says."""
        name = ref.key.get("object", "")
        if ref.transport != self.name or not OBJECT.fullmatch(name):
            raise wrong_way(ref, self.name)
        return name

    def _signed(self, operation: str, **parameters: Any) -> str:
        """A URL for one operation."""
        parameters["Bucket"] = self._bucket
        try:
            url: str = self._client.generate_presigned_url(
                operation, Params=parameters, ExpiresIn=VALID_SECONDS
            )
        except self._errors as error:  # of keys that are fetched from somewhere, and renewed
            raise UnreachableError(f"S3 URLs cannot be signed: {error}") from error
        return url

    def _call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """Ask the store; boto3 tries again by itself."""
        try:
            answer: Mapping[str, Any] = getattr(self._client, operation)(
                Bucket=self._bucket, **parameters
            )
        except self._errors as error:
            response = getattr(error, "response", None)
            status = response["ResponseMetadata"].get("HTTPStatusCode", 0) if response else 0
            kind = TransportError if is_final(status, str(error)) else UnreachableError
            raise kind(f"S3 bucket {self._bucket}: {operation} failed: {error}") from error
        return answer


@contextmanager
def _let_be_refused() -> Iterator[None]:
    """Go on where the store refuses something, but not where it does not answer."""
    try:
        yield
    except UnreachableError:
        raise
    except TransportError:
        pass


def _completion(answers: Sequence[requests.Response]) -> bytes:
    """What makes one object of the parts that a store has taken."""
    etags = [answer.headers.get("ETag") for answer in answers]
    if None in etags:
        raise TransportError("the S3 store took a part and named no ETag: does a proxy remove it?")
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(str(etag))}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def _keys(configs: S3Configs) -> dict[str, str]:
    """The keys of a file with region,access_key_id,secret_access_key; a header may come first."""
    if configs.s3_creds_file is None:
        return {}
    path = Path(configs.s3_creds_file).expanduser()
    try:
        with path.open(newline="") as file:
            rows = [[field.strip() for field in row] for row in csv.reader(file) if row]
    except (OSError, ValueError) as error:
        raise TransportError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not rows or len(rows[-1]) != 3:
        raise TransportError(f"{path}: a line region,access_key_id,secret_access_key was expected")
    names = ("region_name", "aws_access_key_id", "aws_secret_access_key")
    return dict(zip(names, rows[-1], strict=True))
