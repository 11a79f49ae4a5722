// Parts of the edge of the Mandelbrot set.
void mainImage(out vec4 colour, in vec2 at) {
    float angle = TAU * random(0), zoom = 1.5 * pow(0.05, random(1));
    vec2 edge = 0.5 * vec2(cos(angle), sin(angle)) - 0.25 * vec2(cos(2.0 * angle), sin(2.0 * angle));
    vec2 c = edge + zoom * (turn(iTime * 0.2) * centred(at)), z = vec2(0);
    float n = 0.0, trap = 9.0;
    for (int k = 0; k < 60 && dot(z, z) < 16.0; k++) {
        z = vec2(z.x * z.x - z.y * z.y, 2.0 * z.x * z.y) + c;
        trap = min(trap, abs(z.x + 0.3 * z.y));
        n += 1.0;
    }
    float smooth_ = n - log2(max(log2(max(dot(z, z), 1.01)), 0.01));
    colour = vec4(n > 59.5 ? ink(2) * sqrt(trap) * 2.0 : palette(sqrt(smooth_) * between(3, 0.2, 0.8)), 1);
}
