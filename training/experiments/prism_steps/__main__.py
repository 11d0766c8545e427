from training.experiments.prism_steps.run import main


if __name__ == "__main__":
    main()
