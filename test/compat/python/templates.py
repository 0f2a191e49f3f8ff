# Templates: built from steps, their lines shown, found by name, the start of a sandbox, refused where they cannot be.
from scenario import equal, raises


def play(stage) -> None:
    e2b = stage.e2b
    if not hasattr(e2b, "Template"):
        stage.skip("the client has no templates")
    template_of, name, lines = e2b.Template, f"built-{stage.sandbox.sandbox_id}", []
    equal(template_of.exists(name), False)
    template = (
        template_of()
        .from_base_image()
        .set_user("root")
        .set_workdir("/tmp")
        .set_envs({"COLOUR": "blue"})
        .run_cmd('echo "the colour is $COLOUR"')
    )
    info = template_of.build(
        template,
        name,
        cpu_count=1,
        memory_mb=512,
        on_build_logs=lambda entry: lines.append(entry.message),
    )
    equal(any("the colour is blue" in line for line in lines), True)
    equal(template_of.exists(name), True)
    built = e2b.Sandbox.create(name)
    equal(built.get_info().template_id, info.template_id)
    equal(built.commands.run("echo ready").stdout, "ready\n")
    built.kill()
    image = template_of().from_image("debian:12").run_cmd("true")
    error = raises(Exception, lambda: template_of.build(image, f"{name}x"))
    equal("debian:12" in str(error), True)
