from experiments.harness import main
from experiments.speed import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
