from experiments.harness import main
from experiments.scale import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
