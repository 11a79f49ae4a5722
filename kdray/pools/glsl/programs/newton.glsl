// Which root Newton's method finds, and how fast.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 z = placed(at, 0.6, 1.5);
    z -= floor(z / 4.0 + 0.5) * 4.0;
    int power = count(0, 3, 5);
    float relax = between(1, 0.8, 1.4), n = 0.0;
    vec2 move = vec2(1);
    for (int k = 0; k < 20 && dot(move, move) > 1e-4; k++) {
        float r = max(length(z), 1e-3), a = atan(z.y, z.x), m = float(power - 1);
        vec2 low = pow(r, -m) * vec2(cos(m * a), -sin(m * a));
        move = relax * (z - turn(0.1 * sin(iTime)) * low) / float(power);
        z -= move;
        n += 1.0;
    }
    float root = floor(atan(z.y, z.x) / TAU * float(power) + 0.5);
    colour = vec4(palette(root / float(power) + 0.1) * (1.2 - n / between(2, 12.0, 25.0)), 1);
}
