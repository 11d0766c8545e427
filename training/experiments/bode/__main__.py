from training.experiments.bode.run import main


if __name__ == "__main__":
    main()
