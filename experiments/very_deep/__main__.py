from experiments.harness import main
from experiments.very_deep import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
