"""PyArrow does not import pandas by itself, and knows it as soon as somebody else does. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEFORE = """
import sys, math
import pyarrow as pa
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
leave_pandas_alone()
table = pa.table({"a": [1.0, None], "b": ["x", "y"]})
pa.array([{"c": 1}]), pa.scalar(1), table.to_pylist()
assert "pandas" not in sys.modules
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BEFORE + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "by",
    [
        "import pandas as pd",
        "from pandas import Series",
        "import pandas.api.types",
        "import importlib.util; assert importlib.util.find_spec('pandas') and 'pandas' not in sys.modules",
    ],
)
def test_a_series_is_read_as_one(by: str) -> None:
    """Its NaN is a null, as PyArrow has it for pandas and not for lists."""
    said = run(f"""
{by}
import pandas as pd
print(pa.array(pd.Series([1.0, math.nan])).null_count, pa.array([1.0, math.nan]).null_count)
print(pa.Table.from_pandas(pd.DataFrame({{"a": [1, 2]}}))["a"].to_pylist(), pa.array(pd.Categorical(["u"])).type.index_type)
""")
    assert said.splitlines() == ["1 0", "[1, 2] int8"]


@pytest.mark.slow
def test_to_pandas_imports_it() -> None:
    said = run("""
frame = table.to_pandas()
import pandas as pd
print(type(frame) is pd.DataFrame, frame["b"].tolist(), pa.array(frame["a"]).null_count)
""")
    assert said == "True ['x', 'y'] 1\n"


@pytest.mark.slow
def test_where_pandas_is_there_already_nothing_changes() -> None:
    code = """
import sys, pandas as pd, math
before = list(sys.meta_path)
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
leave_pandas_alone()
import pyarrow as pa
assert sys.meta_path == before and pa.array(pd.Series([math.nan])).null_count == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
