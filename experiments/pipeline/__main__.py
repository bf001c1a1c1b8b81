from experiments.harness import main
from experiments.pipeline import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
