import sys

from experiments.harness import main
from experiments.language_model import EXPERIMENT
from experiments.language_model.generate import command

if __name__ == "__main__":
    if any(word.split("=")[0] == "--generate" for word in sys.argv[1:]):
        command()
    else:
        main(EXPERIMENT)
