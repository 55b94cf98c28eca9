"""img2dataset on a list, as its documentation runs it; for `ingest.py`.

python benchmarks/ingest_peer.py '{"url_list": ..., "output_folder": ...}'
"""

import json
import sys

from img2dataset import download

if __name__ == "__main__":  # its workers import this file again
    download(**json.loads(sys.argv[1]))
