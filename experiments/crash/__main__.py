from experiments.crash import EXPERIMENT
from experiments.harness import main

if __name__ == "__main__":
    main(EXPERIMENT)
