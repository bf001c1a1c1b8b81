from experiments.harness import main
from experiments.rotation import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
