from experiments.gradient_flow import EXPERIMENT
from experiments.harness import main

if __name__ == "__main__":
    main(EXPERIMENT)
