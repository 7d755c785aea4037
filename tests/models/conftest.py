import sys
from pathlib import Path

# The generator is an example, not part of the package.
sys.path.append(str(Path(__file__).parents[2] / "examples" / "train_tiny"))
