#!/usr/bin/env python3
"""Asks Globus whether it takes a client's credentials: a JSON object on standard input.

One line and exit code 1 where it does not. The secret is in no command line and no variable.
"""

import json
import sys
from typing import Dict

from globus_sdk import AuthAPIError, ConfidentialAppAuthClient, GlobusError


def main(given: Dict[str, str]) -> int:
    """Ask for a token that says who the client is, and forget it."""
    client = ConfidentialAppAuthClient(given["client_id"], given["client_secret"])
    try:
        client.oauth2_client_credentials_tokens(requested_scopes="openid")
    except AuthAPIError as error:
        code = error.code or "unauthorized"
        print(f"Globus refused the secret ({error.http_status} {code})", file=sys.stderr)
        return 1
    except GlobusError as error:
        print(f"Globus cannot be reached: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.load(sys.stdin)))
